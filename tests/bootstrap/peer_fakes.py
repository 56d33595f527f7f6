"""Stand-ins for what a starting member asks: DNS, and the members that run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvorum.membership import Member
from kvorum.peer.http_client import HttpClient, HttpReply
from kvorum.server.bootstrap.names import LookupFailed, Service


class FakeNames:
    """Hosts from a table; a list gives one answer after the other. Remembers what was asked."""

    def __init__(
        self,
        hosts: Mapping[str, str | list[str]] | None = None,
        services: Mapping[str, list[Service]] | None = None,
    ) -> None:
        self.hosts = dict(hosts or {})
        self.known_services = dict(services or {})
        self.asked: list[str] = []

    async def address(self, host: str) -> str:
        self.asked.append(host)
        found = self.hosts.get(host.rstrip("."), "")
        if isinstance(found, list):
            found = found.pop(0)
        if not found:
            raise LookupFailed(f"lookup {host}: no such host")
        return found

    async def services(self, service: str, domain: str) -> list[Service]:
        name = f"_{service}._tcp.{domain}"
        if name not in self.known_services:
            raise LookupFailed(f"lookup {name}: no such host")
        return self.known_services[name]


class FakeHttp(HttpClient):
    """Answers GET requests from a table of ``url + path``; whoever is not in it is down."""

    def __init__(self, replies: Mapping[str, HttpReply] | None = None) -> None:
        self.replies = dict(replies or {})
        self.asked: list[tuple[str, float]] = []

    async def request(self, method: str, url: str, path: str, **options: Any) -> HttpReply:
        assert method == "GET"
        self.asked.append((url + path, options["timeout"]))
        reply = self.replies.get(url + path)
        if reply is None:
            raise ConnectionRefusedError(111, "Connection refused")
        return reply


def reply(body: str | bytes, *, cluster: str = "", status: int = 200) -> HttpReply:
    headers = {"x-etcd-cluster-id": cluster} if cluster else {}
    return HttpReply(status, headers, body.encode() if isinstance(body, str) else body)


def members_reply(*members: Member, cluster: str = "abc") -> HttpReply:
    body = b"[" + b",".join(member.to_json() for member in members) + b"]\n"
    return reply(body, cluster=cluster)


def version_reply(cluster: str, server: str = "3.7.1") -> HttpReply:
    return reply(json.dumps({"etcdserver": server, "etcdcluster": cluster}))
