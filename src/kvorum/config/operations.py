"""Settings of observation, of single features, and the unsafe ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvorum.config.kinds import BOOL, DURATION, INT, STRING, STRING_SET, UINT, URLS, Choice
from kvorum.config.spec import setting
from kvorum.config.urls import URL


@dataclass(frozen=True, kw_only=True)
class MonitoringSettings:
    """Metrics and profiles."""

    SECTION: ClassVar[str] = "Profiling and Monitoring"

    enable_pprof: bool = setting(BOOL, False, "Serve profiling data under /debug/pprof/.")
    metrics: str = setting(
        STRING, "basic", "basic, or extensive to add gRPC handling time histograms."
    )
    listen_metrics_urls: tuple[URL, ...] = setting(
        URLS, (), "Extra addresses for /metrics and the health endpoints."
    )


@dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """The log."""

    SECTION: ClassVar[str] = "Logging"

    logger: str = setting(STRING, "zap", "Only zap is accepted.")
    log_outputs: tuple[str, ...] = setting(
        STRING_SET, ("default",), "default, stderr, stdout, systemd/journal, or file paths."
    )
    log_level: str = setting(
        Choice("debug", "info", "warn", "error", "panic", "fatal"),
        "info",
        "debug, info, warn, error, panic or fatal. debug also opens the pprof and trace pages.",
    )
    log_format: str = setting(STRING, "json", "json or console.")
    enable_log_rotation: bool = setting(
        BOOL, False, "Rotate the one log file given in log-outputs."
    )
    log_rotation_config_json: str = setting(
        STRING,
        '{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}',
        "Rotation settings as JSON: maxsize (MB), maxage (days), maxbackups, localtime, compress.",
    )
    warning_unary_request_duration: float = setting(
        DURATION, 0.3, "A unary request slower than this is logged; 0 is replaced by 300ms."
    )


@dataclass(frozen=True, kw_only=True)
class TracingSettings:
    """OpenTelemetry."""

    SECTION: ClassVar[str] = "Distributed tracing"

    enable_distributed_tracing: bool = setting(BOOL, False, "Send OpenTelemetry traces.")
    distributed_tracing_address: str = setting(
        STRING, "localhost:4317", "Collector address for traces."
    )
    distributed_tracing_service_name: str = setting(
        STRING, "etcd", "Service name put on traces, the same on every member."
    )
    distributed_tracing_instance_id: str = setting(
        STRING, "", "Instance ID put on traces, unique per member."
    )
    distributed_tracing_sampling_rate: int = setting(
        INT, 0, "Spans sampled per million, 0 to 1000000."
    )


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Checks, batches and warnings."""

    SECTION: ClassVar[str] = "Features"

    corrupt_check_time: float = setting(
        DURATION, 0.0, "Period of the cluster-wide corruption check, 0 turns it off."
    )
    compact_hash_check_time: float = setting(
        DURATION,
        60.0,
        "Period of the compaction hash check by the leader; must be above 0; only used "
        "with the CompactHashCheck gate.",
    )
    compaction_batch_limit: int = setting(
        INT, 0, "Revisions removed per compaction batch; 0 means 1000.", effective="1000"
    )
    peer_skip_client_san_verification: bool = setting(
        BOOL,
        False,
        "Do not check the SAN of certificates on incoming peer connections.",
        yaml="peer-transport-security.skip-client-san-verification",
    )
    watch_progress_notify_interval: float = setting(
        DURATION,
        0.0,
        "Period of progress notices on quiet watches; 0 means 10m; short values are "
        "raised to the floor (100ms).",
        effective="10m",
    )
    warning_apply_duration: float = setting(
        DURATION, 0.1, "Applying a request slower than this is logged."
    )
    bootstrap_defrag_threshold_megabytes: int = setting(
        UINT, 0, "Defragment at start-up when it would free at least this much; 0 never does."
    )
    max_learners: int = setting(INT, 1, "Largest number of learners in the cluster.")
    compaction_sleep_interval: float = setting(
        DURATION, 0.0, "Pause between compaction batches; 0 means 10ms.", effective="10ms"
    )
    downgrade_check_time: float = setting(DURATION, 5.0, "Period of the downgrade status check.")
    snapshot_catchup_entries: int = setting(
        UINT, 5000, "Log entries kept after a snapshot for slow followers."
    )


@dataclass(frozen=True, kw_only=True)
class UnsafeSettings:
    """What can lose data."""

    SECTION: ClassVar[str] = "Unsafe feature"

    force_new_cluster: bool = setting(
        BOOL, False, "Start a one-member cluster out of the present data."
    )
    unsafe_no_fsync: bool = setting(BOOL, False, "Never call fsync; data can be lost.")
