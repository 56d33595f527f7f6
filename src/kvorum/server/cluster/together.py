"""What a member has to do with the others besides raft's own messages, put together.

Membership changes, leases that the leader keeps, the versions of cluster and storage. The server
reports what happens; in between, the work is done at intervals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from kvorum.config import ServerConfig
from kvorum.lease.lessor import Lessor
from kvorum.log import get_logger
from kvorum.membership import Cluster, Version, parse_version
from kvorum.raft.types import Entry
from kvorum.server.applier import Applier
from kvorum.server.catchup import CatchUp
from kvorum.server.cluster.downgrade import Downgrades
from kvorum.server.cluster.leadership import Leadership
from kvorum.server.cluster.lease_forward import Leases
from kvorum.server.cluster.members import MemberChanges
from kvorum.server.cluster.storage_version import (
    CannotMigrate,
    migrate,
    storage_version,
    wanted_version,
)
from kvorum.server.cluster.to_leader import Requests, ToLeader
from kvorum.server.cluster.versions import INTERVAL, ClusterVersion, MemberVersions
from kvorum.server.expiry import LeaseExpiry
from kvorum.server.meta import Buckets
from kvorum.server.proposer import Proposer
from kvorum.server.raftnode import RaftNode
from kvorum.server.reads import ReadGate
from kvorum.telemetry import ServerMetrics
from kvorum.version import ETCD_VERSION

Work = Coroutine[Any, Any, None]

lg = get_logger()


class Parts(Protocol):
    """The server, as far as it is needed here."""

    config: ServerConfig
    loop: asyncio.AbstractEventLoop
    cluster: Cluster
    raft: RaftNode
    applier: Applier
    reads: ReadGate
    proposer: Proposer
    lessor: Lessor
    expiry: LeaseExpiry

    def now(self) -> float: ...


class Together:
    """``http`` asks other members; ``spawn`` runs a coroutine until it ends or the server stops;
    ``log`` gives the entries since the last snapshot, None if not all are at hand; and
    ``take_snapshot`` makes for a snapshot soon."""

    def __init__(
        self,
        parts: Parts,
        *,
        backend: Buckets,
        http: Requests,
        metrics: ServerMetrics,
        spawn: Callable[[Work], object],
        log: Callable[[], Iterable[Entry] | None],
        take_snapshot: Callable[[], None],
        unix_time: Callable[[], float],
    ) -> None:
        config, loop, cluster = parts.config, parts.loop, parts.cluster
        self._parts = parts
        self._backend = backend
        self._spawn = spawn
        self._log = log
        self._take_snapshot = take_snapshot
        self._confirming = False
        self.leadership = Leadership(
            raft=parts.raft, cluster=cluster, reads=parts.reads, tick=config.tick, loop=loop
        )
        self.catch_up = CatchUp(parts.raft, parts.applier, loop)
        self._to_leader = ToLeader(
            local=cluster.local,
            http=http,
            leadership=self.leadership,
            timeout=config.request_timeout,
            loop=loop,
        )
        self.members = self._build_members(metrics, unix_time)
        self.leases = self._build_leases()
        versions = MemberVersions(cluster, http, config.request_timeout)
        self.cluster_version = ClusterVersion(
            cluster=cluster, proposer=parts.proposer, members=versions, spawn=spawn
        )
        self.downgrades = Downgrades(
            cluster=cluster,
            proposer=parts.proposer,
            reads=parts.reads,
            members=versions,
            loop=loop,
        )

    def _build_members(
        self, metrics: ServerMetrics, unix_time: Callable[[], float]
    ) -> MemberChanges:
        parts = self._parts
        return MemberChanges(
            cluster=parts.cluster,
            raft=parts.raft,
            transport=parts.raft.transport,
            leadership=self.leadership,
            catch_up=self.catch_up,
            to_leader=self._to_leader,
            metrics=metrics,
            strict=parts.config.strict_reconfig_check,
            wall_clock=unix_time,
            loop=parts.loop,
        )

    def _build_leases(self) -> Leases:
        parts = self._parts
        return Leases(
            lessor=parts.lessor,
            proposer=parts.proposer,
            leadership=self.leadership,
            catch_up=self.catch_up,
            to_leader=self._to_leader,
            fast=parts.config.feature_gates.enabled("FastLeaseKeepAlive"),
            now=parts.now,
            loop=parts.loop,
        )

    def chores(self) -> list[tuple[float, Callable[[], None]]]:
        """What has to be done now and then: intervals in seconds, and the work."""
        chores: list[tuple[float, Callable[[], None]]] = [(INTERVAL, self._check_versions)]
        if self._parts.config.downgrade_check_time:
            chores.append((self._parts.config.downgrade_check_time, self._check_downgrade))
        return chores

    # What the server reports

    def leader_changed(self, *, is_leader: bool) -> None:
        self.leadership.changed()
        self._to_leader.leader_changed()
        if is_leader:
            self.cluster_version.check()
        else:
            self._parts.expiry.demoted()

    def membership_changed(self) -> None:
        self.leadership.changed()

    def version_changed(self, before: Version | None, after: Version | None) -> None:
        """The cluster has another version, and so must the storage. If it is a lower one, who is
        to read the log may not know all that is in it: a snapshot makes that short."""
        if before is not None and after is not None and after < before:
            lg.info(
                "Cluster version downgrade detected, forcing snapshot",
                prev_cluster_version=str(before),
                new_cluster_version=str(after),
            )
            self._take_snapshot()
        self.migrate_storage()

    def applied(self) -> None:
        if self.catch_up.waiting:
            self.catch_up.advanced()

    # The storage

    def storage_version(self) -> str:
        """The version of the storage, "" if it cannot be told."""
        version = self._storage_version()
        return "" if version is None else str(version)

    def _storage_version(self) -> Version | None:
        return storage_version(self._backend, self._parts.applier.term)

    def migrate_storage(self) -> None:
        """Bring the storage to the cluster's version, if that is possible now."""
        cluster = self._parts.cluster
        target, current = wanted_version(parse_version(cluster.version)), self._storage_version()
        if target is None or target == current:
            return
        try:
            steps = migrate(self._backend, current, target, self._entries(current, target))
        except CannotMigrate as error:
            lg.error(
                "failed to update storage version", cluster_version=str(target), error=str(error)
            )
            return
        for step in steps:
            lg.info("updated storage version", new_storage_version=str(step))
        if cluster.downgrade_target:
            lg.info(
                "The server is ready to downgrade",
                target_version=cluster.downgrade_target,
                server_version=ETCD_VERSION,
            )

    def _entries(self, current: Version | None, target: Version) -> Iterable[Entry]:
        """What a way down has to look at."""
        if current is None or current < target:
            return ()
        entries = self._log()
        if entries is None:
            raise CannotMigrate("the log is long: it waits for a snapshot")
        return entries

    # The chores

    def _check_versions(self) -> None:
        if self._parts.raft.is_leader:
            self.cluster_version.check()
        self.migrate_storage()

    def _check_downgrade(self) -> None:
        if self._parts.raft.is_leader and self._parts.cluster.downgrade_target:
            self._spawn(self.downgrades.check())

    def expire_leases(self) -> None:
        """As the leader, end the leases whose time is up; but not before a quorum has confirmed the
        leader, if it stood still: the next leader may have renewed them since."""
        parts = self._parts
        if not parts.raft.is_leader:
            return
        if self.leadership.is_sure(parts.now()):
            parts.expiry.check(parts.now())
        elif not self._confirming:
            self._confirming = True
            self._spawn(self._confirm_and_expire())

    async def _confirm_and_expire(self) -> None:
        try:
            if await self.leadership.is_confirmed():
                self._parts.expiry.check(self._parts.now())
        finally:
            self._confirming = False
