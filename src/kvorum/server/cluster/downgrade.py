"""A downgrade of the cluster, one minor version at a time.

The operator enables it; the leader then lowers the cluster version, every member its storage
version, and the members are replaced by older ones. When all are, the leader ends it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.log import get_logger
from kvorum.membership import Cluster, Version, parse_version
from kvorum.pb import membershippb
from kvorum.server.awaited import Awaited, until_fresh
from kvorum.server.cluster.versions import MemberVersions
from kvorum.server.proposer import Proposer
from kvorum.server.reads import ReadGate

lg = get_logger()


def parse_target(text: str) -> Version:
    """The version that an operator means by ``3.6`` or ``3.6.0``.

    Raises:
        errors.WrongDowngradeVersionFormat: it is neither.
    """
    version = parse_version(text) or parse_version(text + ".0")
    if version is None:
        raise errors.WrongDowngradeVersionFormat
    return version


class Downgrades:
    """Starts and ends downgrades, as seen from any member. Its methods raise `EtcdError`."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        proposer: Proposer,
        reads: ReadGate,
        members: MemberVersions,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._cluster = cluster
        self._proposer = proposer
        self._reads = reads
        self._members = members
        self._loop = loop
        self._checking = False

    async def validate(self, target: str) -> str:
        """Whether the cluster could be downgraded to a version; returns the one it has.

        Raises:
            errors.WrongDowngradeVersionFormat, errors.ClusterVersionUnavailable,
            errors.InvalidDowngradeTargetVersion, errors.DowngradeInProcess: it could not.
        """
        wanted = parse_target(target)
        before = self._cluster.version
        if not before:
            raise errors.ClusterVersionUnavailable
        await self._validate(wanted)
        return before

    async def _validate(self, target: Version) -> None:
        await until_fresh(self._reads, self._loop)
        current = parse_version(self._cluster.version)
        if current is None:
            raise errors.ClusterVersionUnavailable
        if target != current.below():
            raise errors.InvalidDowngradeTargetVersion
        if self._cluster.downgrade_target:
            raise errors.DowngradeInProcess

    async def enable(self, target: str) -> str:
        """Begin a downgrade; returns the cluster version, which the leader lowers later. Raises
        what `validate` raises."""
        try:
            wanted = parse_target(target)
            await self._validate(wanted)
        except EtcdError as error:
            lg.warn("reject downgrade request", error=str(error))
            raise
        await self._set(enabled=True, ver=str(wanted))
        return self._cluster.version

    async def cancel(self) -> str:
        """End the downgrade under way; returns the cluster version. That there is none is logged
        and no error, as in etcd."""
        try:
            await self._cancel()
        except EtcdError as error:
            lg.warn("failed to cancel downgrade", error=str(error))
        return self._cluster.version

    async def _cancel(self) -> None:
        await until_fresh(self._reads, self._loop)
        if not self._cluster.downgrade_target:
            raise errors.NoInflightDowngrade
        await self._set(enabled=False)

    async def _set(self, **fields: Any) -> None:
        request = membershippb.DowngradeInfoSetRequest(**fields)
        answer = Awaited(self._loop)
        message = request.SerializeToString()
        self._proposer.propose("downgrade_info_set", message, request, answer)
        await answer

    async def check(self) -> None:
        """The leader's look at whether every member has reached the target: then the downgrade is
        over. Nothing happens while a former call is under way."""
        target = parse_version(self._cluster.downgrade_target)
        if target is None or self._checking:
            return
        self._checking = True
        try:
            if await self._reached(target):
                lg.info("the cluster has been downgraded", cluster_version=str(target))
                await self.cancel()
        finally:
            self._checking = False

    async def _reached(self, target: Version) -> bool:
        for member, release in (await self._members.servers()).items():
            version = parse_version(release or "")
            if version != target:
                lg.warn(
                    "remotes server has mismatching etcd version",
                    remote_member_id=f"{member:x}",
                    current_server_version=release or "unknown",
                    target_version=str(target),
                )
                return False
        return True
