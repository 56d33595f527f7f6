"""Metrics that show what parts of the server know anyway: asked for at a scrape, never kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvorum import buildinfo
from kvorum.alarm import alarm_name
from kvorum.api.metrics import fd_limit, fds_used
from kvorum.config.gates import GATES
from kvorum.h2 import GrpcServer, Method
from kvorum.pb import pool
from kvorum.server.server import Server
from kvorum.telemetry import GRPC_CODES, Telemetry
from kvorum.version import ETCD_VERSION

Labelled = dict[tuple[str, ...], float]


def mirror(telemetry: Telemetry, server: Server) -> None:
    """Let the metrics follow the server. Doing it again changes nothing."""
    _mirror_consensus(telemetry, server)
    _mirror_identity(telemetry, server)
    _mirror_store(telemetry, server)


def _mirror_consensus(telemetry: Telemetry, server: Server) -> None:
    metrics, raft, reads, proposer = telemetry.server, server.raft, server.reads, server.proposer
    metrics.has_leader.follow(lambda: 1 if raft.leader else 0)
    metrics.is_leader.follow(lambda: 1 if raft.is_leader else 0)
    metrics.committed.follow(lambda: raft.committed)
    metrics.applied.follow(lambda: server.applier.index)
    metrics.pending.follow(lambda: len(proposer.waiting))
    metrics.failed.follow(lambda: proposer.failed)
    metrics.slow_reads.follow(lambda: reads.slow)
    metrics.failed_reads.follow(lambda: reads.failed)
    telemetry.cluster.is_learner.follow(lambda: 1 if server.cluster.is_learner() else 0)


def _mirror_identity(telemetry: Telemetry, server: Server) -> None:
    metrics, cluster = telemetry.server, server.cluster
    metrics.version.follow(lambda: {(ETCD_VERSION,): 1})
    metrics.go_version.follow(lambda: {(buildinfo.language_version(),): 1})
    metrics.id.follow(lambda: {(f"{server.id:x}",): 1})
    gates = server.config.feature_gates
    metrics.feature_enabled.follow(
        lambda: {(name, gate.stage): float(gates.enabled(name)) for name, gate in GATES.items()}
    )
    metrics.fds_used.follow(fds_used)
    metrics.fds_limit.follow(fd_limit)
    metrics.quota.follow(lambda: server.quota.limit)
    telemetry.cluster.version.follow(lambda: _cluster_version(server))
    telemetry.cluster.known_peers.follow(
        lambda: {(f"{server.id:x}", f"{member:x}"): 1 for member in cluster.members}
    )
    seen: Labelled = {}
    metrics.alarms.follow(lambda: _alarms(server, seen))


def _cluster_version(server: Server) -> Labelled:
    """major.minor, once a leader has set it."""
    version = server.cluster.version
    return {(version.rpartition(".")[0],): 1} if version else {}


def _alarms(server: Server, seen: Labelled) -> Labelled:
    """1 for each alarm that is on, 0 for each that was at a former scrape."""
    for labels in seen:
        seen[labels] = 0
    for alarm in server.alarms.get():
        seen[f"{alarm.memberID:x}", alarm_name(alarm.alarm)] = 1
    return seen


def _mirror_store(telemetry: Telemetry, server: Server) -> None:
    metrics, store, backend = telemetry.mvcc, server.store, server.backend
    metrics.keys.follow(lambda: len(store.index))
    metrics.revision.follow(lambda: store.rev)
    metrics.compact_revision.follow(lambda: store.compact_rev)
    metrics.db_size.follow(backend.size)
    metrics.db_in_use.follow(backend.size_in_use)


def mirror_calls(
    telemetry: Telemetry, methods: Mapping[str, Method], listeners: Sequence[GrpcServer]
) -> None:
    """Let the metrics of calls follow the counters of the methods and the listeners."""
    labels = {path: _call_labels(path) for path in methods}
    grpc, client = telemetry.grpc, telemetry.client
    grpc.started.follow(lambda: {labels[p]: m.started for p, m in methods.items()})
    grpc.received.follow(lambda: {labels[p]: m.received for p, m in methods.items()})
    grpc.sent.follow(lambda: {labels[p]: m.sent for p, m in methods.items()})
    grpc.handled.follow(
        lambda: {
            (name, *labels[path]): method.handled[code]
            for path, method in methods.items()
            for code, name in enumerate(GRPC_CODES)
        }
    )
    client.sent_bytes.follow(lambda: sum(listener.bytes_out for listener in listeners))
    client.received_bytes.follow(lambda: sum(listener.bytes_in for listener in listeners))


def _call_labels(path: str) -> tuple[str, str, str]:
    """Method, service and kind of a path, in the order of the families' labels."""
    _, service, name = path.split("/")
    method = pool().FindServiceByName(service).methods_by_name[name]
    kinds = {
        (False, False): "unary",
        (False, True): "server_stream",
        (True, False): "client_stream",
        (True, True): "bidi_stream",
    }
    return name, service, kinds[method.client_streaming, method.server_streaming]
