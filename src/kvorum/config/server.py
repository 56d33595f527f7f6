"""`ServerConfig`: every setting of a member, checked, frozen, with nothing left to interpret."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Final

from kvorum.config import urls
from kvorum.config.clustering import ClusteringSettings
from kvorum.config.kinds import STRING
from kvorum.config.member import MemberSettings
from kvorum.config.operations import (
    FeatureSettings,
    LoggingSettings,
    MonitoringSettings,
    TracingSettings,
    UnsafeSettings,
)
from kvorum.config.security import AuthSettings, SecuritySettings
from kvorum.config.spec import Setting, setting, settings_of
from kvorum.config.urls import URL

SECTIONS: Final = (
    MemberSettings,
    ClusteringSettings,
    SecuritySettings,
    AuthSettings,
    MonitoringSettings,
    LoggingSettings,
    TracingSettings,
    FeatureSettings,
    UnsafeSettings,
)
"""In the order of the help."""

REQUEST_BASE: Final = 5.0
"""Seconds that a request may spend in queues, on the CPU and on the disk, elections apart."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig(
    MemberSettings,
    ClusteringSettings,
    SecuritySettings,
    AuthSettings,
    MonitoringSettings,
    LoggingSettings,
    TracingSettings,
    FeatureSettings,
    UnsafeSettings,
):
    """All settings of one member, named as the flags with underscores.

    Durations are seconds, but `heartbeat_interval` and `election_timeout` are milliseconds, as
    their flags are. Made by `kvorum.config.load` (command line) or `make` (programs): there the
    defaults that stand for something else are resolved (`data_dir`, batch limits, the quota).
    """

    config_file: str = setting(STRING, "", "The file that the settings came from.", yaml=None)
    explicit: frozenset[str] = frozenset()
    """Names of the flags, or top-level keys of the file, that were given."""

    @property
    def tick(self) -> float:
        """Seconds of one raft tick."""
        return self.heartbeat_interval / 1000

    @property
    def election_ticks(self) -> int:
        return self.election_timeout // self.heartbeat_interval

    @property
    def request_timeout(self) -> float:
        """Seconds after which a request is given up: the base and two elections."""
        return REQUEST_BASE + 2 * self.election_ticks * self.tick

    @property
    def member_dir(self) -> str:
        return os.path.join(self.data_dir, "member")

    @property
    def snap_dir(self) -> str:
        return os.path.join(self.member_dir, "snap")

    @property
    def wal_path(self) -> str:
        """Where the log is: --wal-dir, or under the data directory."""
        return self.wal_dir or os.path.join(self.member_dir, "wal")

    @property
    def is_new_cluster(self) -> bool:
        return self.initial_cluster_state == "new"

    @property
    def initial_members(self) -> dict[str, tuple[URL, ...]]:
        """Name to peer URLs of the starting members."""
        return urls.parse_members(self.initial_cluster)

    @property
    def local_address(self) -> str | None:
        """Where connections to other members leave from: with the gate SetMemberLocalAddr, the
        first address that we advertise; else the system chooses."""
        if not self.feature_gates.enabled("SetMemberLocalAddr"):
            return None
        hosts = (url.host for url in self.initial_advertise_peer_urls)
        return next((host for host in hosts if urls.is_foreign_ip(host)), None)

    @property
    def serves_http_apart(self) -> bool:
        """HTTP has its own listeners, so that those of the clients speak gRPC only."""
        return bool(self.listen_client_http_urls)


@cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting in the order of the help, without those that are no settings of a member
    (config-file, version)."""
    return tuple(found for section in SECTIONS for found in settings_of(section))


@cache
def flags() -> dict[str, Setting]:
    """The settings that have a flag, by name."""
    return {found.name: found for found in all_settings() if found.is_flag}


def cluster_of_one(name: str, peer_urls: tuple[URL, ...]) -> str:
    """The initial cluster that follows from a member's own name and addresses."""
    return ",".join(f"{name or 'default'}={url}" for url in peer_urls)
