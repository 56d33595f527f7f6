"""From a command line and an environment to a `ServerConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvorum.config.args import CommandLine, parse_args
from kvorum.config.environ import CONFIG_FILE, read_environment
from kvorum.config.faults import ConfigError
from kvorum.config.resolve import Notice, Resolved, resolve
from kvorum.config.server import flags
from kvorum.config.yamlfile import read_config_file


def load(args: list[str], environment: Mapping[str, str]) -> Resolved | CommandLine:
    """The settings; or the command line itself, when it asks for the help or the version.

    A configuration file (flag or variable) makes etcd forget all other flags and variables, and
    so do we. Raises FlagError (exit code 2) or ConfigError (exit code 1).
    """
    line = parse_args(args)
    if line.wants_help:
        return line
    if line.rest:
        raise ConfigError(f'"{line.rest[0]}" is not a valid flag')
    if line.wants_version:
        return line
    path = line.values.pop("config-file", "") or environment.get(CONFIG_FILE, "")
    return _from_file(path) if path else _from_command_line(line.values, environment)


def _from_file(path: str) -> Resolved:
    read = read_config_file(path)
    values = dict(read.values)
    has_discovery = values.get("discovery-srv") or values.get("discovery-endpoints")
    if has_discovery and "initial-cluster" not in values:
        values["initial-cluster"] = ""
    attributes = {name.replace("-", "_"): value for name, value in values.items()}
    resolved = resolve(attributes | {"config_file": path}, frozenset(read.keys))
    loaded = Notice(
        "info",
        "loaded server configuration, other configuration command line flags and environment "
        "variables will be ignored if provided",
        {"path": path},
    )
    unknown = [
        Notice("warn", "ignoring unknown key in configuration file", {"key": key, "path": path})
        for key in read.unknown
    ]
    return Resolved(resolved.config, [loaded, *unknown, *resolved.notices])


def _from_command_line(given: dict[str, Any], environment: Mapping[str, str]) -> Resolved:
    from_environment, notices = read_environment(environment, given)
    values = from_environment | given
    explicit = frozenset(values)
    if "listen-client-urls" in values and "advertise-client-urls" not in values:
        values["advertise-client-urls"] = ()  # the default would name another listener
    discovery = ("discovery-srv", "discovery-srv-name", "discovery-endpoints")
    if any(values.get(name) for name in discovery) and "initial-cluster" not in values:
        values["initial-cluster"] = ""
    attributes = {flags()[name].attribute: value for name, value in values.items()}
    resolved = resolve(attributes, explicit)
    return Resolved(resolved.config, notices + resolved.notices)
