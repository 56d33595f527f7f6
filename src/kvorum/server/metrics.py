"""The server's own metrics: gauges that read the state when they are asked for, and counters that
are kept once a batch.
"""

from __future__ import annotations

import platform
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from kvorum.log import get_logger
from kvorum.telemetry import Counter, Histogram, Telemetry
from kvorum.version import ETCD_VERSION

if TYPE_CHECKING:
    from kvorum.server.server import Server

_OPS: Final = {
    "put": "Put",
    "delete_range": "DeleteRange",
    "txn": "Txn",
    "compaction": "Compaction",
    "lease_grant": "LeaseGrant",
    "lease_revoke": "LeaseRevoke",
    "lease_checkpoint": "LeaseCheckpoint",
    "alarm": "Alarm",
    "cluster_version_set": "ClusterVersionSet",
    "cluster_member_attr_set": "ClusterMemberAttrSet",
    "downgrade_info_set": "DowngradeInfoSet",
}
"""etcd's names of the operations that are applied."""

lg = get_logger()


class ServerMetrics:
    """Connects a server with the telemetry of its member."""

    def __init__(self, telemetry: Telemetry, server: Server) -> None:
        apply = telemetry.server.apply_seconds
        self._apply_seconds: dict[str, Histogram] = {
            kind: apply.with_labels("v3", op, "true") for kind, op in _OPS.items()
        }
        mvcc = telemetry.mvcc
        self._counters: dict[str, Counter] = {
            "put": mvcc.puts,
            "delete_range": mvcc.deletes,
            "txn": mvcc.txns,
        }
        self._slow = telemetry.server.slow_applies
        self._slow_after = server.config.warning_apply_duration
        _follow(telemetry, server)

    def applied(self, counts: dict[str, int], seconds: float) -> None:
        """A batch was applied, so many requests of each kind, in so many seconds in all."""
        total = sum(counts.values())
        for kind, count in counts.items():
            self._apply_seconds[kind].observe_n(seconds / total, count)
            counter = self._counters.get(kind)
            if counter is not None:
                counter.value += count
        if total and seconds / total > self._slow_after:
            self._slow.value += total
            took = timedelta(seconds=seconds)
            lg.warn("apply request took too long", took=took, requests=counts)


def _follow(telemetry: Telemetry, server: Server) -> None:
    metrics = telemetry.server
    metrics.has_leader.follow(lambda: float(bool(server.raft.leader)))
    metrics.is_leader.follow(lambda: float(server.raft.is_leader))
    metrics.committed.follow(lambda: server.raft.committed)
    metrics.applied.follow(lambda: server.applier.index)
    metrics.pending.follow(lambda: len(server.proposer.waiting))
    metrics.quota.follow(lambda: server.quota.limit)
    metrics.version.with_labels(ETCD_VERSION).value = 1
    metrics.go_version.with_labels(platform.python_version()).value = 1
    metrics.id.with_labels(f"{server.id:x}").value = 1
    for gate, enabled in server.config.feature_gates.all().items():
        metrics.feature_enabled.with_labels(gate, "ALPHA").value = float(enabled)
    mvcc = telemetry.mvcc
    mvcc.revision.follow(lambda: server.store.rev)
    mvcc.compact_revision.follow(lambda: server.store.compact_rev)
    mvcc.keys.follow(lambda: len(server.store.index))
    mvcc.db_size.follow(server.backend.size)
    mvcc.db_in_use.follow(server.backend.size_in_use)
    telemetry.cluster.is_learner.follow(lambda: float(server.cluster.is_learner()))
