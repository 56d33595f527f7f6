"""What clients asked and what they were told: the words in which a history is written.

A history is a list of `Operation`; times are seconds of any one clock. Revisions that are not known
are 0. Ranges are etcd's: ``end`` b"" is the one key, b"\\0" everything from the key on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias


class KeyValue(NamedTuple):
    """A pair as etcd returns it. ``mod`` 0: its revisions, version and lease are not known."""

    key: bytes
    value: bytes
    create: int = 0
    mod: int = 0
    version: int = 0
    lease: int = 0


class Event(NamedTuple):
    """A change. That of a deletion has a ``kv`` of key and ``mod`` alone."""

    kind: Literal["put", "delete"]
    kv: KeyValue
    prev: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes
    lease: int = 0
    prev: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """``serializable``: of any state up to the present; ``revision``: of the state at that one."""

    key: bytes
    end: bytes = b""
    limit: int = 0
    revision: int = 0
    serializable: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes
    end: bytes = b""
    prev: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """``key``'s ``target`` stands in ``relation`` to ``operand``."""

    key: bytes
    target: Literal["version", "create", "mod", "value", "lease"]
    relation: Literal["=", "!=", "<", ">"]
    operand: int | bytes
    end: bytes = b""


@dataclass(frozen=True, slots=True)
class Txn:
    compares: tuple[Compare, ...]
    success: tuple[Request, ...] = ()
    failure: tuple[Request, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(each, Get) and each.revision for each in self.success + self.failure):
            raise ValueError("a get of an old revision inside a transaction is not modelled")


@dataclass(frozen=True, slots=True)
class Revoke:
    """The end of a lease, asked for or by expiry: its keys go, in one revision."""

    lease: int


Request: TypeAlias = Put | Get | Delete | Txn | Revoke


@dataclass(frozen=True, slots=True)
class PutResult:
    revision: int = 0
    prev: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class GetResult:
    """``count`` is of all keys in the range, whatever the limit."""

    revision: int
    kvs: tuple[KeyValue, ...]
    count: int


@dataclass(frozen=True, slots=True)
class DeleteResult:
    revision: int
    deleted: int
    prev: tuple[KeyValue, ...] = ()


@dataclass(frozen=True, slots=True)
class TxnResult:
    revision: int
    succeeded: bool
    results: tuple[Result, ...] = ()


@dataclass(frozen=True, slots=True)
class RevokeResult:
    revision: int = 0


Result: TypeAlias = PutResult | GetResult | DeleteResult | TxnResult | RevokeResult


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client.

    ``result`` None: whether it took effect is not known, and it may do so at any time after
    ``start``, even after ``end``; what certainly had no effect does not belong into a history.
    """

    client: int | str
    request: Request
    start: float
    end: float = math.inf
    result: Result | None = None

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"an operation that ends before it starts: {self}")

    def __str__(self) -> str:
        outcome = "unknown" if self.result is None else _short(self.result)
        when = f"{self.start:.6f}..{self.end:.6f}"
        return f"[{when}] client {self.client}: {_short(self.request)} -> {outcome}"


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether ``key`` is one of the keys that etcd's range means."""
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


def _short(thing: object) -> str:
    """A repr without what is at its default."""
    if isinstance(thing, KeyValue):
        text = f"{_text(thing.key)}={_text(thing.value)}"
        return f"{text}@{thing.mod}" if thing.mod else text
    if isinstance(thing, bytes):
        return _text(thing)
    if isinstance(thing, tuple):
        return "[" + ", ".join(map(_short, thing)) + "]"
    fields: Sequence[str] = getattr(type(thing), "__slots__", ())
    if not fields:
        return repr(thing)
    shown = [(name, getattr(thing, name)) for name in fields]
    inside = ", ".join(f"{name}={_short(value)}" for name, value in shown if value or value == b"")
    return f"{type(thing).__name__}({inside})"


def _text(data: bytes) -> str:
    return repr(data)[1:]
