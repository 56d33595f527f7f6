"""The environment: ``ETCD_`` and the flag's name in capitals with underscores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvorum.config.args import IGNORED
from kvorum.config.faults import ConfigError
from kvorum.config.resolve import Notice
from kvorum.config.server import flags
from kvorum.config.spec import environment_name

CONFIG_FILE = environment_name("config-file")
VERSION = environment_name("version")
PREFIX = "ETCD_"


def read_environment(
    environment: Mapping[str, str], on_command_line: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Notice]]:
    """Values by flag name from the variables that are set, and what to log about them.

    Raises ConfigError for a value that does not parse, and for a variable whose flag is given too
    (etcd refuses to choose between them).
    """
    values: dict[str, Any] = {}
    notices: list[Notice] = []
    known = {environment_name(name): name for name in (*flags(), *IGNORED)}
    shadowed = {environment_name(name) for name in on_command_line}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable == CONFIG_FILE:
            continue
        if variable in shadowed:
            raise ConfigError(
                "conflicting environment variable is shadowed by corresponding command-line flag "
                f"(either unset environment variable or disable flag): {variable}"
            )
        if variable == VERSION:
            fields = {"key": variable, "value": text}
            notices.append(Notice("warn", "cannot set special environment variable", fields))
        elif text and variable in known:
            values |= _value(known[variable], variable, text)
            fields = {"variable_name": variable, "variable_value": text}
            notices.append(Notice("info", "recognized and used environment variable", fields))
        else:
            fields = {"environment_variable": f"{variable}={text}"}
            notices.append(Notice("warn", "unrecognized environment variable", fields))
    return values, notices


def _value(name: str, variable: str, text: str) -> dict[str, Any]:
    if name in IGNORED:
        return {}
    try:
        return {name: flags()[name].kind.parse(text)}
    except ValueError as error:
        raise ConfigError(f'invalid value "{text}" for {variable}: {error}') from None
