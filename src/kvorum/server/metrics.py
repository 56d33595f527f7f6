"""Ties the gauges to where the numbers are, so that they cost nothing until they are asked for."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from kvorum.telemetry import Telemetry
from kvorum.version import ETCD_VERSION

if TYPE_CHECKING:
    from kvorum.server.server import Server


def connect(telemetry: Telemetry, server: Server) -> None:
    """Let every gauge of the member follow its source."""
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
    mvcc = telemetry.mvcc
    mvcc.revision.follow(lambda: server.store.rev)
    mvcc.keys.follow(lambda: len(server.store.index))
    telemetry.cluster.is_learner.follow(lambda: float(server.cluster.is_learner()))
