"""What the given settings come to: dependent defaults, minimums, replaced values."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kvorum.config.check import check
from kvorum.config.server import ServerConfig, all_settings, cluster_of_one
from kvorum.config.urls import URL, join

DEFAULT_QUOTA: Final = 2 << 30
BCRYPT_COSTS: Final = range(4, 32)
MIN_PEER_TIMEOUT: Final = 5.0
MIN_PROGRESS_INTERVAL: Final = 0.1


class Notice(NamedTuple):
    """A line for the log, which is set up only once the settings are known."""

    level: str
    msg: str
    fields: dict[str, Any]


class Resolved(NamedTuple):
    config: ServerConfig
    notices: list[Notice]


_ZERO_MEANS: Final = {
    "snapshot_count": 10000,
    "backend_batch_interval": 0.1,
    "backend_batch_limit": 10000,
    "backend_bbolt_freelist_type": "map",
    "quota_backend_bytes": DEFAULT_QUOTA,
    "compaction_batch_limit": 1000,
    "compaction_sleep_interval": 0.01,
    "watch_progress_notify_interval": 600.0,
    "warning_unary_request_duration": 0.3,
    "self_signed_cert_validity": 1,
    "auto_compaction_retention": "0",
    "initial_cluster_state": "new",
    "log_outputs": ("default",),
}
"""Settings whose zero (or empty) value stands for another."""


def resolve(given: Mapping[str, Any], explicit: frozenset[str] = frozenset()) -> Resolved:
    """Raises ConfigError for settings that cannot be."""
    values = {made.attribute: made.default for made in all_settings()} | dict(given)
    notices: list[Notice] = []
    for attribute, meaning in _ZERO_MEANS.items():
        values[attribute] = values[attribute] or meaning
    values["v2_deprecation"] = "write-only"
    _raise_minimums(values, notices)
    _warn_deprecated(explicit, notices)
    checked = ServerConfig(**values, explicit=explicit)
    notices += [Notice("warn", msg, fields) for msg, fields in check(checked)]
    _fill_in(values, notices)
    return Resolved(ServerConfig(**values, explicit=explicit), notices)


def make(**given: Any) -> ServerConfig:
    """A configuration for a program that embeds a member: settings not given are the defaults.

    `listen_*` and `*_urls` take parsed URLs (`kvorum.config.parse_urls`). Raises ConfigError for
    settings that cannot be, TypeError for unknown ones.
    """
    known = {made.attribute for made in all_settings()} | {"config_file"}
    unknown = given.keys() - known
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    explicit = frozenset(name.replace("_", "-") for name in given)
    if (given.get("discovery_srv") or given.get("discovery_endpoints")) and (
        "initial_cluster" not in given
    ):
        given["initial_cluster"] = ""  # the default is but one way to tell the members
    return resolve(given, explicit).config


def _raise_minimums(values: dict[str, Any], notices: list[Notice]) -> None:
    for attribute in ("raft_read_timeout", "raft_write_timeout"):
        if values[attribute] < MIN_PEER_TIMEOUT:
            values[attribute] = MIN_PEER_TIMEOUT
            name = attribute.replace("_", "-")
            notices.append(Notice("info", f"{name} increased to minimum value: 5s", {}))
    values["watch_progress_notify_interval"] = max(
        values["watch_progress_notify_interval"], MIN_PROGRESS_INTERVAL
    )
    cost = values["bcrypt_cost"]
    if cost not in BCRYPT_COSTS:
        values["bcrypt_cost"] = 10
        fields = {"min_cost": 4, "max_cost": 31, "default_cost": 10, "given_cost": cost}
        notices.append(Notice("warn", "use default bcrypt cost, the given one is invalid", fields))


def _warn_deprecated(explicit: frozenset[str], notices: list[Notice]) -> None:
    for made in all_settings():
        if made.deprecated and made.name in explicit:
            notices.append(Notice("warn", made.deprecated, {}))


def _fill_in(values: dict[str, Any], notices: list[Notice]) -> None:
    """The defaults that depend on other settings, as etcd works them out."""
    default_cluster = next(
        made.default for made in all_settings() if made.attribute == "initial_cluster"
    )
    _advertise_default_host(values, notices)
    if values["name"] != "default" and values["initial_cluster"] == default_cluster:
        values["initial_cluster"] = cluster_of_one(
            values["name"], values["initial_advertise_peer_urls"]
        )
    if not values["data_dir"]:
        values["data_dir"] = f"{values['name']}.etcd"
        fields = {"data_dir": values["data_dir"]}
        notices.append(Notice("warn", "'data-dir' was empty; using default", fields))


def _advertise_default_host(values: dict[str, Any], notices: list[Notice]) -> None:
    """A member that listens on 0.0.0.0 and still advertises localhost is told by the address that
    its default route leaves from."""
    pairs = (
        ("listen_peer_urls", "initial_advertise_peer_urls", "http://localhost:2380"),
        ("listen_client_urls", "advertise_client_urls", "http://localhost:2379"),
    )
    wanting = [
        (listen, advertise)
        for listen, advertise, default in pairs
        if join(values[advertise]) == default and values[listen][0].host == "0.0.0.0"
    ]
    if not wanting:
        return
    host = default_host()
    if not host:
        notices.append(Notice("info", "failed to detect default host", {}))
        return
    for listen, advertise in wanting:
        values[advertise] = (URL("http", f"{host}:{values[listen][0].port}"),)
    notices.append(Notice("info", "detected default host for advertise", {"host": host}))


def default_host() -> str:
    """The address that packets to the outside leave from, empty when there is no route. Nothing
    is sent: connecting a datagram socket only looks up the route (192.0.2.0/24 is reserved)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return ""
