"""Switches a server's named failpoints through its GOFAIL_HTTP listener."""

from __future__ import annotations

import http.client

from support.member import Member
from support.ports import free_port


class Failpoints:
    """The listener of one member; it must be made before the member starts.

    Ask ``known`` first: servers may list their points with a package's path in front.
    """

    def __init__(self, member: Member) -> None:
        self.port = free_port()
        self.names: dict[str, str] = {}  # short name to the name as the server lists it
        member.env["GOFAIL_HTTP"] = f"127.0.0.1:{self.port}"

    def _ask(self, method: str, path: str, body: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            connection.request(method, path, body)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        finally:
            connection.close()

    def known(self) -> set[str]:
        """The names the running server has; empty if it has no listener at all."""
        try:
            status, text = self._ask("GET", "/")
        except OSError:
            return set()
        assert status == 200, text
        full = (line.partition("=")[0] for line in text.splitlines() if line)
        self.names = {name.rpartition("/")[2]: name for name in full}
        return set(self.names)

    def set(self, name: str, term: str) -> None:
        status, text = self._ask("PUT", f"/{self.names[name]}", term)
        assert status == 204, f"{name}={term}: {status} {text}"

    def clear(self, name: str) -> None:
        status, text = self._ask("DELETE", f"/{self.names[name]}")
        assert status == 204, f"{name}: {status} {text}"
