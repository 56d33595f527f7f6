"""Every metric of a member, under etcd's names: one `Telemetry` a member, handed down to its parts.

    telemetry.mvcc.puts.value += 1
    telemetry.disk.wal_fsync.observe(seconds)

The parts take only their own group (``telemetry.mvcc``), and tests give them a fresh one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvorum.instruments import (
    DEFAULT_BOUNDS,
    Counter,
    Family,
    Gauge,
    Histogram,
    Registry,
    exponential,
)

__all__ = ["Counter", "Family", "Gauge", "Histogram", "MethodCounters", "Telemetry"]

DISK: Final = exponential(0.001, 2, 14)
APPLY: Final = exponential(0.0001, 2, 20)
TRANSFER: Final = exponential(0.1, 2, 10)
HASH: Final = exponential(0.01, 2, 15)

GRPC_CODES: Final = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)
"""Names of the gRPC status codes; the place is the code."""


class AuthMetrics:
    def __init__(self, r: Registry) -> None:
        self.revision = r.gauge("etcd_debugging_auth_revision", "Revision of the auth store.")


class HealthMetrics:
    def __init__(self, r: Registry) -> None:
        self.successes = r.counter("etcd_server_health_success", "Good answers of /health.")
        self.failures = r.counter("etcd_server_health_failures", "Bad answers of /health.")
        self.last = r.gauges(
            "etcd_server_healthcheck",
            "Last result of a livez or readyz check: 1 is good, 0 is bad.",
            "type",
            "name",
        )
        self.checks = r.counters(
            "etcd_server_healthchecks_total",
            "Checks of livez and readyz that were run.",
            "type",
            "name",
            "status",
        )


class ClusterMetrics:
    def __init__(self, r: Registry) -> None:
        self.version = r.gauges(
            "etcd_cluster_version", "1 under the present cluster version.", "cluster_version"
        )
        self.known_peers = r.gauges(
            "etcd_network_known_peers", "1 for each member known here.", "Local", "Remote"
        )
        self.is_learner = r.gauge("etcd_server_is_learner", "1 while this member is a learner.")


class PeerMetrics:
    """Links between members; the labels hold member ids in hex."""

    def __init__(self, r: Registry) -> None:
        self.active = r.gauges(
            "etcd_network_active_peers", "Open links to a peer.", "Local", "Remote"
        )
        self.disconnected = r.counters(
            "etcd_network_disconnected_peers_total", "Links that broke.", "Local", "Remote"
        )
        self.sent_bytes = r.counters(
            "etcd_network_peer_sent_bytes_total", "Bytes sent to a peer.", "To"
        )
        self.received_bytes = r.counters(
            "etcd_network_peer_received_bytes_total", "Bytes taken from a peer.", "From"
        )
        self.sent_failures = r.counters(
            "etcd_network_peer_sent_failures_total", "Sends to a peer that failed.", "To"
        )
        self.received_failures = r.counters(
            "etcd_network_peer_received_failures_total", "Receives that failed.", "From"
        )
        self.round_trip = r.histograms(
            "etcd_network_peer_round_trip_time_seconds",
            "Round trip to a peer, as probed.",
            exponential(0.0001, 2, 16),
            "To",
        )


class SnapshotTransferMetrics:
    """Database snapshots between members."""

    def __init__(self, r: Registry) -> None:
        self.sent = r.counters("etcd_network_snapshot_send_success", "Snapshots sent whole.", "To")
        self.sending = r.gauges(
            "etcd_network_snapshot_send_inflights_total", "Snapshots being sent.", "To"
        )
        self.send_failures = r.counters(
            "etcd_network_snapshot_send_failures", "Snapshots that failed to send.", "To"
        )
        self.send_seconds = r.histograms(
            "etcd_network_snapshot_send_total_duration_seconds",
            "Time to send a snapshot whole.",
            TRANSFER,
            "To",
        )
        self.received = r.counters(
            "etcd_network_snapshot_receive_success", "Snapshots received whole.", "From"
        )
        self.receiving = r.gauges(
            "etcd_network_snapshot_receive_inflights_total", "Snapshots being received.", "From"
        )
        self.receive_failures = r.counters(
            "etcd_network_snapshot_receive_failures", "Snapshots that failed to arrive.", "From"
        )
        self.receive_seconds = r.histograms(
            "etcd_network_snapshot_receive_total_duration_seconds",
            "Time to receive a snapshot whole.",
            TRANSFER,
            "From",
        )


class SnapMetrics:
    """Snapshot files."""

    def __init__(self, r: Registry) -> None:
        self.marshal = r.histogram(
            "etcd_debugging_snap_save_marshalling_duration_seconds",
            "Encoding of a raft snapshot that is being saved.",
            DISK,
        )
        self.save = r.histogram(
            "etcd_debugging_snap_save_total_duration_seconds", "Saving of a raft snapshot.", DISK
        )
        self.fsync = r.histogram(
            "etcd_snap_fsync_duration_seconds", "Fsync of a raft snapshot file.", DISK
        )
        self.db_save = r.histogram(
            "etcd_snap_db_save_total_duration_seconds",
            "Saving of a received database snapshot.",
            TRANSFER,
        )
        self.db_fsync = r.histogram(
            "etcd_snap_db_fsync_duration_seconds", "Fsync of a received database snapshot.", DISK
        )


class StoreV2Metrics:
    """The old v2 store, which holds the members only."""

    def __init__(self, r: Registry) -> None:
        self.reads = r.counters("etcd_debugging_store_reads_total", "Reads by action.", "action")
        self.writes = r.counters("etcd_debugging_store_writes_total", "Writes by action.", "action")
        self.failed_reads = r.counters(
            "etcd_debugging_store_reads_failed_total", "Failed reads by action.", "action"
        )
        self.failed_writes = r.counters(
            "etcd_debugging_store_writes_failed_total", "Failed writes by action.", "action"
        )
        self.expires = r.counter("etcd_debugging_store_expires_total", "Keys that expired.")
        self.watch_requests = r.counter(
            "etcd_debugging_store_watch_requests_total", "Watches asked for."
        )
        self.watchers = r.gauge("etcd_debugging_store_watchers", "Watches open.")


class ClientMetrics:
    """Traffic of clients, and the loop that sends to watches."""

    def __init__(self, r: Registry) -> None:
        loop = "etcd_debugging_server_watch_send_loop_"
        self.sent_bytes = r.counter(
            "etcd_network_client_grpc_sent_bytes_total", "Bytes of messages sent to clients."
        )
        self.received_bytes = r.counter(
            "etcd_network_client_grpc_received_bytes_total",
            "Bytes of messages taken from clients.",
        )
        self.stream_failures = r.counters(
            "etcd_network_server_stream_failures_total", "Streams that broke.", "Type", "API"
        )
        self.requests = r.counters(
            "etcd_server_client_requests_total",
            "Calls by kind (unary or stream) and API version of the client.",
            "type",
            "client_api_version",
        )
        self.watch_send = r.histogram(
            loop + "watch_stream_duration_seconds", "Sending one response of events.", DISK
        )
        self.watch_send_per_event = r.histogram(
            loop + "watch_stream_duration_per_event_seconds",
            "Sending one response of events, divided by their number.",
            DISK,
        )
        self.control_send = r.histogram(
            loop + "control_stream_duration_seconds", "Sending one control response.", DISK
        )
        self.progress_send = r.histogram(
            loop + "progress_duration_seconds", "One round of progress notices.", DISK
        )


class ServerMetrics:
    """The member itself: leadership, proposals, reads, applies."""

    def __init__(self, r: Registry) -> None:
        self._leadership(r)
        self._proposals(r)
        self._identity(r)
        self._requests(r)

    def _leadership(self, r: Registry) -> None:
        self.has_leader = r.gauge("etcd_server_has_leader", "1 while a leader is known.")
        self.is_leader = r.gauge("etcd_server_is_leader", "1 while this member leads.")
        self.leader_changes = r.counter(
            "etcd_server_leader_changes_seen_total", "Leader changes seen."
        )
        self.promote_failures = r.counters(
            "etcd_server_learner_promote_failures", "Promotions refused, by reason.", "Reason"
        )
        self.promote_successes = r.counter(
            "etcd_server_learner_promote_successes", "Promotions done here as the leader."
        )
        self.late_heartbeats = r.counter(
            "etcd_server_heartbeat_send_failures_total",
            "Heartbeats sent late: a sign of overload.",
        )

    def _proposals(self, r: Registry) -> None:
        self.snapshot_applying = r.gauge(
            "etcd_server_snapshot_apply_in_progress_total",
            "1 while an incoming snapshot is applied.",
        )
        self.committed = r.gauge(
            "etcd_server_proposals_committed_total", "Index of the last committed entry."
        )
        self.applied = r.gauge(
            "etcd_server_proposals_applied_total", "Index of the last applied entry."
        )
        self.pending = r.gauge("etcd_server_proposals_pending", "Proposals that wait.")
        self.failed = r.counter("etcd_server_proposals_failed_total", "Proposals that failed.")

    def _identity(self, r: Registry) -> None:
        self.version = r.gauges(
            "etcd_server_version", "1 under the server's version.", "server_version"
        )
        self.go_version = r.gauges(
            "etcd_server_go_version",
            "1 under the version of the language the server runs on.",
            "server_go_version",
        )
        self.id = r.gauges("etcd_server_id", "1 under the member's id in hex.", "server_id")
        self.feature_enabled = r.gauges(
            "etcd_server_feature_enabled", "1 or 0 for each feature gate.", "name", "stage"
        )
        self.alarms = r.gauges(
            "etcd_debugging_server_alarms",
            "1 for an active alarm, 0 once it is disarmed.",
            "server_id",
            "alarm_type",
        )
        self.quota = r.gauge("etcd_server_quota_backend_bytes", "Quota of the backend in use.")
        self.fds_used = r.gauge("os_fd_used", "Open file descriptors.")
        self.fds_limit = r.gauge("os_fd_limit", "Limit of open file descriptors.")

    def _requests(self, r: Registry) -> None:
        self.request_seconds = r.histograms(
            "etcd_server_request_duration_seconds",
            "Time of a request, by kind of request and success.",
            DISK,
            "type",
            "success",
        )
        self.slow_reads = r.counter(
            "etcd_server_slow_read_indexes_total", "Read index rounds that had to ask again."
        )
        self.failed_reads = r.counter(
            "etcd_server_read_indexes_failed_total", "Read index rounds that failed."
        )
        self.slow_applies = r.counter(
            "etcd_server_slow_apply_total", "Applies that took longer than the warning duration."
        )
        self.apply_seconds = r.histograms(
            "etcd_server_apply_duration_seconds",
            "Time to apply a request, by storage version, operation and success.",
            APPLY,
            "version",
            "op",
            "success",
        )
        self.range_seconds = r.histograms(
            "etcd_server_range_duration_seconds", "Time of a range.", APPLY, "success"
        )


class LeaseMetrics:
    def __init__(self, r: Registry) -> None:
        self.granted = r.counter("etcd_debugging_lease_granted_total", "Leases granted.")
        self.revoked = r.counter("etcd_debugging_lease_revoked_total", "Leases revoked.")
        self.renewed = r.counter(
            "etcd_debugging_lease_renewed_total", "Renewals seen here as the leader."
        )
        self.ttls = r.histogram(
            "etcd_debugging_lease_ttl_total", "Granted times in seconds.", exponential(1, 2, 24)
        )
        self.expired = r.counter("etcd_debugging_server_lease_expired_total", "Leases expired.")


class ProxyMetrics:
    """etcd lists the families of its gRPC proxy in every process, at 0 in a server."""

    def __init__(self, r: Registry) -> None:
        self.watchers_merged = r.gauge(
            "etcd_grpc_proxy_watchers_coalescing_total", "Watches merged by the proxy."
        )
        self.events_merged = r.counter(
            "etcd_grpc_proxy_events_coalescing_total", "Events merged by the proxy."
        )
        self.cache_keys = r.gauge("etcd_grpc_proxy_cache_keys_total", "Ranges in the cache.")
        self.cache_hits = r.gauge("etcd_grpc_proxy_cache_hits_total", "Hits in the cache.")
        self.cache_misses = r.gauge("etcd_grpc_proxy_cache_misses_total", "Misses in the cache.")


class DiskMetrics:
    """The write-ahead log and the backend."""

    def __init__(self, r: Registry) -> None:
        debugging = "etcd_debugging_disk_backend_commit_"
        self.wal_fsync = r.histogram(
            "etcd_disk_wal_fsync_duration_seconds", "Fsync of the write-ahead log.", DISK
        )
        self.wal_write = r.histogram(
            "etcd_disk_wal_write_duration_seconds", "Writes to the write-ahead log.", DISK
        )
        self.wal_bytes = r.gauge(
            "etcd_disk_wal_write_bytes_total", "Bytes written to the write-ahead log."
        )
        self.commit = r.histogram(
            "etcd_disk_backend_commit_duration_seconds", "Commits of the backend.", DISK
        )
        self.commit_rebalance = r.histogram(
            debugging + "rebalance_duration_seconds", "Rebalance part of a commit.", DISK
        )
        self.commit_spill = r.histogram(
            debugging + "spill_duration_seconds", "Spill part of a commit.", DISK
        )
        self.commit_write = r.histogram(
            debugging + "write_duration_seconds", "Write part of a commit.", DISK
        )
        self.defrag = r.histogram(
            "etcd_disk_backend_defrag_duration_seconds",
            "Defragments of the backend.",
            exponential(0.1, 2, 13),
        )
        self.snapshot = r.histogram(
            "etcd_disk_backend_snapshot_duration_seconds",
            "Snapshots of the backend.",
            exponential(0.01, 2, 17),
        )
        self.defragging = r.gauge("etcd_disk_defrag_inflight", "1 while a defragment runs.")


class MvccMetrics:
    """The versioned store and its watches."""

    def __init__(self, r: Registry) -> None:
        self._operations(r)
        self._watches(r)
        self._compaction(r)
        self._sizes(r)

    def _operations(self, r: Registry) -> None:
        self.ranges = r.counter("etcd_mvcc_range_total", "Ranges seen by this member.")
        self.puts = r.counter("etcd_mvcc_put_total", "Puts seen by this member.")
        self.deletes = r.counter("etcd_mvcc_delete_total", "Deletes seen by this member.")
        self.txns = r.counter("etcd_mvcc_txn_total", "Transactions seen by this member.")
        self.keys = r.gauge("etcd_debugging_mvcc_keys_total", "Live keys.")
        self.revision = r.gauge("etcd_debugging_mvcc_current_revision", "Present revision.")
        self.put_bytes = r.gauge(
            "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put."
        )
        self.hash_seconds = r.histogram(
            "etcd_mvcc_hash_duration_seconds", "Hash of the whole store.", HASH
        )
        self.hash_rev_seconds = r.histogram(
            "etcd_mvcc_hash_rev_duration_seconds", "Hash at a revision.", HASH
        )

    def _watches(self, r: Registry) -> None:
        self.watch_streams = r.gauge(
            "etcd_debugging_mvcc_watch_stream_total", "Open watch streams."
        )
        self.watchers = r.gauge("etcd_debugging_mvcc_watcher_total", "Open watches.")
        self.slow_watchers = r.gauge(
            "etcd_debugging_mvcc_slow_watcher_total", "Watches that lag behind."
        )
        self.events = r.counter("etcd_debugging_mvcc_events_total", "Events sent.")
        self.pending_events = r.gauge(
            "etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent."
        )

    def _compaction(self, r: Registry) -> None:
        self.compact_revision = r.gauge(
            "etcd_debugging_mvcc_compact_revision", "Last compacted revision."
        )
        self.index_compaction_pause = r.histogram(
            "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
            "Pause of the index compaction.",
            exponential(0.5, 2, 14),
        )
        self.compaction_pause = r.histogram(
            "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
            "Pause of one batch of the database compaction.",
            exponential(1, 2, 13),
        )
        self.compaction_total = r.histogram(
            "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
            "The whole database compaction.",
            exponential(100, 2, 14),
        )
        self.compaction_last = r.gauge(
            "etcd_debugging_mvcc_db_compaction_last",
            "Unix time of the last compaction since the start.",
        )
        self.compaction_keys = r.counter(
            "etcd_debugging_mvcc_db_compaction_keys_total", "Keys removed by compaction."
        )

    def _sizes(self, r: Registry) -> None:
        self.db_size = r.gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the backend's file.")
        self.db_in_use = r.gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes", "Part of the backend's file in use."
        )
        self.read_txns = r.gauge(
            "etcd_mvcc_db_open_read_transactions", "Open read transactions of the backend."
        )


class MethodCounters:
    """The counters of one gRPC method; `handled` is indexed by the status code."""

    __slots__ = ("handled", "received", "seconds", "sent", "started")

    def __init__(
        self,
        started: Counter,
        received: Counter,
        sent: Counter,
        handled: tuple[Counter, ...],
        seconds: Histogram | None,
    ) -> None:
        self.started = started
        self.received = received
        self.sent = sent
        self.handled = handled
        self.seconds = seconds


class GrpcMetrics:
    """What the Go gRPC library's interceptor counts; `extensive` adds the handling times."""

    _METHOD = ("grpc_method", "grpc_service", "grpc_type")

    def __init__(self, r: Registry, *, extensive: bool) -> None:
        self.started = r.counters("grpc_server_started_total", "Calls begun.", *self._METHOD)
        self.handled = r.counters(
            "grpc_server_handled_total", "Calls ended, by code.", "grpc_code", *self._METHOD
        )
        self.received = r.counters(
            "grpc_server_msg_received_total", "Messages taken from clients.", *self._METHOD
        )
        self.sent = r.counters(
            "grpc_server_msg_sent_total", "Messages sent to clients.", *self._METHOD
        )
        self.seconds: Family[Histogram] | None = None
        if extensive:
            self.seconds = r.histograms(
                "grpc_server_handling_seconds", "Time of a call.", DEFAULT_BOUNDS, *self._METHOD
            )

    def method(self, path: str, kind: str) -> MethodCounters:
        """The counters of ``/service/Method``, at 0. `kind` is unary, client_stream,
        server_stream or bidi_stream."""
        _, service, name = path.split("/")
        labels = (name, service, kind)
        return MethodCounters(
            self.started.with_labels(*labels),
            self.received.with_labels(*labels),
            self.sent.with_labels(*labels),
            tuple(self.handled.with_labels(code, *labels) for code in GRPC_CODES),
            None if self.seconds is None else self.seconds.with_labels(*labels),
        )

    def methods(self, paths: Iterable[tuple[str, str]]) -> dict[str, MethodCounters]:
        return {path: self.method(path, kind) for path, kind in paths}


class Telemetry:
    """All metrics of one member. A part is given its group, never the whole."""

    def __init__(self, *, extensive: bool = False) -> None:
        self.registry = r = Registry()
        self.auth = AuthMetrics(r)
        self.health = HealthMetrics(r)
        self.cluster = ClusterMetrics(r)
        self.peer = PeerMetrics(r)
        self.transfer = SnapshotTransferMetrics(r)
        self.snap = SnapMetrics(r)
        self.store_v2 = StoreV2Metrics(r)
        self.client = ClientMetrics(r)
        self.server = ServerMetrics(r)
        self.lease = LeaseMetrics(r)
        self.proxy = ProxyMetrics(r)
        self.disk = DiskMetrics(r)
        self.mvcc = MvccMetrics(r)
        self.grpc = GrpcMetrics(r, extensive=extensive)
