"""The server's counters and histograms, kept once a batch."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from kvorum.log import get_logger
from kvorum.server.proposer import CONF_CHANGE
from kvorum.telemetry import Counter, Histogram, Telemetry

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
    "downgrade_version_test": "DowngradeVersionTest",
    CONF_CHANGE: "ConfChange",
}
"""etcd's names of the operations that are applied."""

lg = get_logger()


class ServerMetrics:
    """The numbers of one server; ``slow_after`` is ``--warning-apply-duration`` in seconds."""

    def __init__(self, telemetry: Telemetry, slow_after: float) -> None:
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
        self._slow_after = slow_after
        self._durations: dict[str, Histogram] = {
            "commit": telemetry.disk.commit,
            "defrag": telemetry.disk.defrag,
            "hash": telemetry.mvcc.hash_seconds,
            "snapshot": telemetry.disk.snapshot,
        }
        self._leader_changes = telemetry.server.leader_changes

    def observed(self, what: str, seconds: float) -> None:
        """The backend did something: ``commit``, ``defrag``, ``hash`` or ``snapshot``."""
        self._durations[what].observe(seconds)

    def leader_changed(self) -> None:
        self._leader_changes.value += 1

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
