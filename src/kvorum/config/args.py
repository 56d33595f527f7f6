"""The command line, read as Go's flag package reads it.

One dash or two; ``--name=value`` or ``--name value``; a bool takes its value only after ``=``; the
last of a repeated flag wins; the first argument that is no flag, or ``--``, ends the flags.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from kvorum.config.faults import FlagError
from kvorum.config.server import flags
from kvorum.config.spec import Setting

IGNORED: Final = frozenset(
    {
        "cluster-active-size",
        "cluster-remove-delay",
        "cluster-sync-interval",
        "config",
        "force",
        "max-result-buffer",
        "max-retry-attempts",
        "peer-election-timeout",
        "peer-heartbeat-interval",
        "retry-interval",
        "snapshot",
        "test.coverprofile",
        "test.outputdir",
        "v",
        "vv",
    }
)
"""Flags of long ago: taken like bools, and dropped."""

_FORMER_GATES: Final = {
    "experimental-compact-hash-check-enabled": "CompactHashCheck",
    "experimental-initial-corrupt-check": "InitialCorruptCheck",
    "experimental-enable-lease-checkpoint": "LeaseCheckpoint",
    "experimental-enable-lease-checkpoint-persist": "LeaseCheckpointPersist",
    "experimental-stop-grpc-service-on-defrag": "StopGRPCServiceOnDefrag",
    "experimental-txn-mode-write-with-shared-buffer": "TxnModeWriteWithSharedBuffer",
}


class CommandLine(NamedTuple):
    values: dict[str, Any]
    """By flag name; config-file among them."""
    rest: list[str]
    """What follows the flags."""
    wants_help: bool
    wants_version: bool


def parse_args(args: list[str]) -> CommandLine:
    """Raises FlagError at the first flag that does not parse."""
    reader = _Reader(args)
    while reader.step():
        pass
    wants_version = bool(reader.values.pop("version", False))
    return CommandLine(reader.values, reader.left, reader.wants_help, wants_version)


class _Reader:
    def __init__(self, args: list[str]) -> None:
        self.left = list(args)
        self.values: dict[str, Any] = {}
        self.wants_help = False

    def step(self) -> bool:
        """Take one flag off the front; False when the flags are at an end."""
        if not self.left or len(self.left[0]) < 2 or self.left[0][0] != "-":
            return False
        arg = self.left.pop(0)
        if arg == "--":
            return False
        name, equals, value = arg.removeprefix("-").removeprefix("-").partition("=")
        if not name or name[0] == "-":
            raise FlagError(f"bad flag syntax: {arg}")
        if name in ("h", "help"):
            self.wants_help = True
            return False
        self._set(name, value if equals else None)
        return True

    def _set(self, name: str, value: str | None) -> None:
        if name in IGNORED:
            return
        if name == "version":
            self.values[name] = parse_flag_bool(name, value)
        elif name == "config-file":
            self.values[name] = self._argument(name, value)
        else:
            made = flags().get(name)
            if made is None:
                raise FlagError(unknown_flag(name))
            self.values[name] = self._parse(made, value)

    def _parse(self, made: Setting, value: str | None) -> Any:
        if made.kind.is_bool:
            return parse_flag_bool(made.name, value)
        text = self._argument(made.name, value)
        try:
            return made.kind.parse(text)
        except ValueError as error:
            raise FlagError(f'invalid value "{text}" for flag -{made.name}: {error}') from None

    def _argument(self, name: str, value: str | None) -> str:
        if value is not None:
            return value
        if not self.left:
            raise FlagError(f"flag needs an argument: -{name}")
        return self.left.pop(0)


def parse_flag_bool(name: str, value: str | None) -> bool:
    from kvorum.config.numbers import parse_bool

    try:
        return value is None or parse_bool(value)
    except ValueError as error:
        raise FlagError(f'invalid boolean value "{value}" for -{name}: {error}') from None


def unknown_flag(name: str) -> str:
    """etcd's text, and what may have been meant."""
    text = f"flag provided but not defined: -{name}"
    gate = _FORMER_GATES.get(name)
    if gate:
        return f"{text}\nIt is a feature gate now: --feature-gates={gate}=true"
    settled = name.removeprefix("experimental-")
    if settled != name and settled in flags():
        return f"{text}\nIt is settled now: --{settled}"
    from difflib import get_close_matches  # costs 3 ms to import, and only a mistake needs it

    near = get_close_matches(name, [*flags(), "config-file", "version"], n=1, cutoff=0.6)
    return f"{text}\nDid you mean --{near[0]}?" if near else text
