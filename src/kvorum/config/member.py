"""Settings of one member: its place on disk, its listeners, its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvorum.config.gates import NO_GATES, FeatureGates
from kvorum.config.kinds import BOOL, DURATION, GATES, INT, STRING, UINT, UINT32, URLS
from kvorum.config.spec import setting
from kvorum.config.urls import URL, parse_urls


@dataclass(frozen=True, kw_only=True)
class MemberSettings:
    """What concerns this member alone."""

    SECTION: ClassVar[str] = "Member"

    name: str = setting(
        STRING,
        "default",
        "Name of this member; must be unique in the cluster, since it is matched against "
        "initial-cluster.",
    )
    data_dir: str = setting(
        STRING, "", "Directory for all state of the member.", effective="<name>.etcd"
    )
    wal_dir: str = setting(
        STRING,
        "",
        "Separate directory for the write-ahead log; under data-dir when empty.",
        effective="<data-dir>/member/wal",
    )
    snapshot_count: int = setting(
        UINT, 10000, "Applied entries after which a raft snapshot is taken; 0 is replaced by 10000."
    )
    heartbeat_interval: int = setting(UINT, 100, "Raft tick, in milliseconds.")
    election_timeout: int = setting(
        UINT,
        1000,
        "Time without a leader before an election, in milliseconds; at least 5 ticks and "
        "at most 50000.",
    )
    initial_election_tick_advance: bool = setting(
        BOOL, True, "Skip most of the first election timeout at start-up."
    )
    listen_peer_urls: tuple[URL, ...] = setting(
        URLS,
        parse_urls("http://localhost:2380"),
        "Addresses to accept peer connections on; IP or localhost, not a domain name.",
    )
    listen_client_urls: tuple[URL, ...] = setting(
        URLS,
        parse_urls("http://localhost:2379"),
        "Addresses for client gRPC, and for client HTTP too unless listen-client-http-"
        "urls is given.",
    )
    listen_client_http_urls: tuple[URL, ...] = setting(
        URLS,
        (),
        "Addresses for HTTP-only client traffic; once set, listen-client-urls serve gRPC only.",
    )
    max_snapshots: int = setting(
        UINT,
        5,
        "How many snapshot files to keep, 0 keeps all.",
        deprecated="--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
    )
    max_wals: int = setting(UINT, 5, "How many write-ahead log files to keep, 0 keeps all.")
    memory_mlock: bool = setting(
        BOOL, False, "Lock the pages of the process (backend file included) in memory."
    )
    quota_backend_bytes: int = setting(
        INT,
        0,
        "Backend size at which the NOSPACE alarm is raised; 0 means 2 GiB, negative "
        "switches the quota off.",
        effective="2147483648",
    )
    backend_bbolt_freelist_type: str = setting(
        STRING,
        "",
        "Free page bookkeeping of the backend: array or map; only the word array picks "
        "the array kind, anything else gives map.",
        effective="map",
    )
    backend_batch_interval: float = setting(
        DURATION, 0.0, "Longest wait before a backend commit.", effective="100ms"
    )
    backend_batch_limit: int = setting(
        INT, 0, "Operations after which the backend commits.", effective="10000"
    )
    max_txn_ops: int = setting(UINT, 128, "Largest number of operations in one transaction.")
    max_request_bytes: int = setting(
        UINT,
        1572864,
        "Largest request accepted, in bytes; the gRPC limit is this plus 512 KiB. Values "
        "above 10 MiB draw a warning.",
    )
    max_concurrent_streams: int = setting(
        UINT32, 4294967295, "HTTP/2 streams one client connection may hold open."
    )
    grpc_keepalive_min_time: float = setting(
        DURATION, 5.0, "Shortest ping period allowed to clients before the connection is closed."
    )
    grpc_keepalive_interval: float = setting(
        DURATION, 7200.0, "Period of pings from server to client, 0 turns them off."
    )
    grpc_keepalive_timeout: float = setting(
        DURATION, 20.0, "Wait for a ping answer before closing, 0 turns it off."
    )
    socket_reuse_port: bool = setting(
        BOOL, False, "Set SO_REUSEPORT on listeners.", yaml="socket-options.reuse-port"
    )
    socket_reuse_address: bool = setting(
        BOOL, False, "Set SO_REUSEADDR on listeners.", yaml="socket-options.reuse-address"
    )
    enable_grpc_gateway: bool = setting(BOOL, True, "Serve the JSON gateway.")
    raft_read_timeout: float = setting(
        DURATION,
        5.0,
        "Read timeout of peer connections; values under 5s are raised to 5s.",
        yaml=None,
    )
    raft_write_timeout: float = setting(
        DURATION,
        5.0,
        "Write timeout of peer connections; values under 5s are raised to 5s.",
        yaml=None,
    )
    feature_gates: FeatureGates = setting(  # noqa: RUF009 - makes a field, as the others do
        GATES,
        NO_GATES,
        "Switches for alpha and beta features, as Name=bool pairs joined by commas.",
    )
