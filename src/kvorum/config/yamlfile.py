"""The configuration file: YAML (or JSON) with etcd's keys, some of them nested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from kvorum.config.faults import ConfigError
from kvorum.config.kinds import STRING
from kvorum.config.server import all_settings
from kvorum.config.spec import Setting

MAX_FILE: Final = 1 << 20
"""Bytes. etcd's sample file with every key has 6000."""


class ConfigFile(NamedTuple):
    values: dict[str, Any]
    """By setting name."""
    keys: list[str]
    """Top-level keys that are there."""
    unknown: list[str]
    """Keys that mean nothing, dotted; etcd ignores them without a word."""


def read_config_file(path: str) -> ConfigFile:
    """Raises ConfigError when it cannot be read, is no YAML mapping, or holds a bad value."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"open {path}: {(error.strerror or str(error)).lower()}") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path} is larger than {MAX_FILE} bytes: not a configuration file")
    return parse_config(data, path)


def parse_config(data: bytes, path: str) -> ConfigFile:
    import yaml  # only those who use a file pay for it

    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"error converting YAML to JSON: {path}: {error}") from None
    if document is None:
        return ConfigFile({}, [], [])
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold keys and values")
    settings = {made.yaml.lower(): made for made in all_settings() if made.yaml}
    parents = {parent for key in settings for parent in _parents(key)}
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in _flatten(document, parents, ""):
        made = settings.get(key.lower())
        if made is None:
            unknown.append(key)
        elif value is not None and not (value == "" and made.kind is not STRING):
            values[made.name] = _load(made, value, path)
    unknown = [key for key in unknown if key not in parents]
    return ConfigFile(values, [str(key).lower() for key in document], unknown)


def _parents(key: str) -> Iterator[str]:
    parts = key.split(".")
    for end in range(1, len(parts)):
        yield ".".join(parts[:end])


def _flatten(
    document: Mapping[Any, Any], parents: set[str], prefix: str
) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        path = f"{prefix}{key}"
        if path.lower() not in parents:
            yield path, value
        elif isinstance(value, dict):
            yield from _flatten(value, parents, f"{path}.")
        elif value is not None:
            raise ConfigError(f"invalid {path}: keys and values are wanted below it")


def _load(made: Setting, value: object, path: str) -> Any:
    try:
        return made.kind.load(value)
    except ValueError as error:
        raise ConfigError(f"{path}: {made.yaml}: {error}") from None
