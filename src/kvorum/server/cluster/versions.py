"""The leader's part in versions: it asks all members what they are, and decides for the cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, Final

from kvorum.log import get_logger
from kvorum.membership import Cluster, Member, Version, parse_version
from kvorum.membership.version import OWN, InvalidDowngrade, decide
from kvorum.pb import membershippb
from kvorum.server.cluster.to_leader import Requests
from kvorum.server.proposer import Proposer, Told
from kvorum.types import MemberID
from kvorum.version import ETCD_VERSION

INTERVAL: Final = 4.0
"""Seconds between two looks at the versions, as in etcd."""

_PATH: Final = "/version"
_MAX_REPLY: Final = 64 * 1024

Spawn = Callable[[Coroutine[Any, Any, None]], object]

lg = get_logger()


class MemberVersions:
    """Asks members for their releases."""

    def __init__(self, cluster: Cluster, http: Requests, timeout: float) -> None:
        self._cluster = cluster
        self._http = http
        self._timeout = timeout

    async def servers(self) -> dict[MemberID, str | None]:
        """The release of every member, None for one that gives none."""
        others = self._cluster.others()
        found = await asyncio.gather(*(self._server(member) for member in others))
        releases: dict[MemberID, str | None] = {self._cluster.local: ETCD_VERSION}
        releases.update((member.id, release) for member, release in zip(others, found, strict=True))
        return releases

    async def _server(self, member: Member) -> str | None:
        for url in member.peer_urls:
            try:
                reply = await self._http.request(
                    "GET", url, _PATH, timeout=self._timeout, max_body=_MAX_REPLY
                )
                return str(json.loads(reply.body)["etcdserver"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                lg.warn(
                    "failed to get version",
                    address=url + _PATH,
                    remote_member_id=f"{member.id:x}",
                    error=str(error) or type(error).__name__,
                )
        return None


class ClusterVersion:
    """Keeps the cluster's version what its members' releases make it. For the leader alone."""

    def __init__(
        self, *, cluster: Cluster, proposer: Proposer, members: MemberVersions, spawn: Spawn
    ) -> None:
        self._cluster = cluster
        self._proposer = proposer
        self._members = members
        self._spawn = spawn
        self._busy = False

    def check(self) -> None:
        """See whether the version should be another, and then propose it. To be called by a new
        leader and every `INTERVAL`; nothing happens while a former call is under way."""
        if self._busy or self._is_settled():
            return
        self._busy = True
        if self._cluster.others():
            self._spawn(self._ask())
        else:  # nobody to wait for: a cluster of one is ready at once
            self._decide({self._cluster.local: ETCD_VERSION})

    def _is_settled(self) -> bool:
        """Nothing is above the own version, and without a downgrade nothing leads below it."""
        cluster = self._cluster
        return parse_version(cluster.version) == OWN and not cluster.downgrade_target

    async def _ask(self) -> None:
        try:
            releases = await self._members.servers()
        except BaseException:
            self._busy = False
            raise
        self._decide(releases)

    def _decide(self, releases: dict[MemberID, str | None]) -> None:
        cluster = self._cluster
        servers = [self._server_version(member, text) for member, text in releases.items()]
        target = parse_version(cluster.downgrade_target)
        try:
            version = decide(parse_version(cluster.version), servers, target)
        except InvalidDowngrade as error:
            lg.error("failed to monitor cluster version", error=str(error))
            version = None
        if version is None:
            self._busy = False
            return
        lg.info("updating cluster version", old=cluster.version, new=str(version))
        request = membershippb.ClusterVersionSetRequest(ver=str(version))
        message = request.SerializeToString()
        self._proposer.propose("cluster_version_set", message, request, Told(self._done))

    def _server_version(self, member: MemberID, release: str | None) -> Version | None:
        if release is None:
            return None
        version = parse_version(release)
        remote = {"remote_member_id": f"{member:x}", "remote_member_version": release}
        if version is None:
            lg.warn("failed to parse server version of remote member", **remote)
        elif version > OWN:
            lg.warn("leader found higher-versioned member", local=ETCD_VERSION, **remote)
        return version

    def _done(self, error: str) -> None:
        self._busy = False
        if error:
            lg.warn("failed to update cluster version", error=error)


def versions_document(cluster_version: str, storage_version: str) -> bytes:
    """What ``/version`` answers: JSON in etcd's order; versions that are not known are ""."""
    versions = {
        "etcdserver": ETCD_VERSION,
        "etcdcluster": cluster_version or "not_decided",
        "storage": storage_version or "unknown",
    }
    return json.dumps(versions, separators=(",", ":")).encode()
