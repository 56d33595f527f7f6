"""The line that tells a log's reader what a member was started with."""

from __future__ import annotations

import os
from typing import Any

from kvorum import buildinfo
from kvorum.config.check import compaction_retention
from kvorum.config.kinds import show_seconds
from kvorum.config.server import ServerConfig
from kvorum.config.urls import render_members, strings
from kvorum.version import ETCD_VERSION, VERSION


def start_fields(config: ServerConfig, *, member_initialized: bool) -> dict[str, Any]:
    """The fields of etcd's ``starting an etcd server`` line; go-version is Python's here."""
    return {
        **_program(),
        "member-initialized": member_initialized,
        **_place(config),
        **_addresses(config),
        **_limits(config),
        **_checks(config),
        **_discovery(config),
        "downgrade-check-interval": show_seconds(config.downgrade_check_time),
        "max-learners": config.max_learners,
        "v2-deprecation": config.v2_deprecation,
    }


def _program() -> dict[str, Any]:
    return {
        "etcd-version": ETCD_VERSION,
        "kvorum-version": VERSION,
        "git-sha": buildinfo.GIT_SHA,
        "go-version": buildinfo.language_version(),
        "go-os": buildinfo.os_name(),
        "go-arch": buildinfo.arch(),
        "max-cpu-set": _cpus_allowed(),
        "max-cpu-available": os.cpu_count(),
    }


def _cpus_allowed() -> int | None:
    """Where the system has no notion of it (macOS), all that there are."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count()


def _place(config: ServerConfig) -> dict[str, Any]:
    return {
        "name": config.name,
        "data-dir": config.data_dir,
        "wal-dir": config.wal_dir,
        "wal-dir-dedicated": config.wal_dir,
        "member-dir": config.member_dir,
        "force-new-cluster": config.force_new_cluster,
        "heartbeat-interval": show_seconds(config.tick),
        "election-timeout": show_seconds(config.election_ticks * config.tick),
        "initial-election-tick-advance": config.initial_election_tick_advance,
        "snapshot-count": config.snapshot_count,
        "max-wals": config.max_wals,
        "max-snapshots": config.max_snapshots,
        "snapshot-catchup-entries": config.snapshot_catchup_entries,
    }


def _addresses(config: ServerConfig) -> dict[str, Any]:
    return {
        "initial-advertise-peer-urls": strings(config.initial_advertise_peer_urls),
        "listen-peer-urls": strings(config.listen_peer_urls),
        "advertise-client-urls": strings(config.advertise_client_urls),
        "listen-client-urls": strings(config.listen_client_urls),
        "listen-metrics-urls": strings(config.listen_metrics_urls),
        "local-address": config.local_address or "",
        "cors": list(config.cors),
        "host-whitelist": list(config.host_whitelist),
        "initial-cluster": _starting_members(config),
        "initial-cluster-state": config.initial_cluster_state,
        "initial-cluster-token": config.initial_cluster_token,
    }


def _starting_members(config: ServerConfig) -> str:
    """As given if it makes no sense: a member with data never looks at it."""
    try:
        return render_members(config.initial_members)
    except ValueError:
        return config.initial_cluster


def _limits(config: ServerConfig) -> dict[str, Any]:
    return {
        "quota-backend-bytes": config.quota_backend_bytes,
        "max-request-bytes": config.max_request_bytes,
        "max-concurrent-streams": config.max_concurrent_streams,
        "pre-vote": config.pre_vote,
        "feature-gates": str(config.feature_gates),
    }


def _checks(config: ServerConfig) -> dict[str, Any]:
    retention = compaction_retention(config)
    if config.auto_compaction_mode == "periodic":
        shown = show_seconds(retention)
    else:  # etcd keeps revisions in a duration, and prints them as nanoseconds
        shown = show_seconds(retention / 1_000_000_000)
    return {
        "initial-corrupt-check": config.feature_gates.enabled("InitialCorruptCheck"),
        "corrupt-check-time-interval": show_seconds(config.corrupt_check_time),
        "compact-check-time-interval": show_seconds(config.compact_hash_check_time),
        "auto-compaction-mode": config.auto_compaction_mode,
        "auto-compaction-retention": shown,
        "auto-compaction-interval": shown,
    }


def _discovery(config: ServerConfig) -> dict[str, Any]:
    return {
        "discovery-token": config.discovery_token,
        "discovery-endpoints": ",".join(config.discovery_endpoints),
        "discovery-dial-timeout": show_seconds(config.discovery_dial_timeout),
        "discovery-request-timeout": show_seconds(config.discovery_request_timeout),
        "discovery-keepalive-time": show_seconds(config.discovery_keepalive_time),
        "discovery-keepalive-timeout": show_seconds(config.discovery_keepalive_timeout),
        "discovery-insecure-transport": config.discovery_insecure_transport,
        "discovery-insecure-skip-tls-verify": config.discovery_insecure_skip_tls_verify,
        "discovery-cert": config.discovery_cert,
        "discovery-key": config.discovery_key,
        "discovery-cacert": config.discovery_cacert,
        "discovery-user": config.discovery_user,
    }
