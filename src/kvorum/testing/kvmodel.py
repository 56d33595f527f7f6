"""etcd's key space as a plain sequential machine: what each request does when nothing else runs.

This is the specification that histories are compared with; it shares no code with the server.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from kvorum.testing.history import (
    Compare,
    Delete,
    DeleteResult,
    Event,
    Get,
    GetResult,
    KeyValue,
    Put,
    PutResult,
    Request,
    Result,
    Revoke,
    RevokeResult,
    Txn,
    TxnResult,
    in_range,
)

Pairs = Mapping[bytes, KeyValue]

_RELATIONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


class State:
    """The key space at a revision. Never changed: a request makes another one."""

    __slots__ = ("_hash", "pairs", "revision")

    def __init__(self, revision: int = 1, pairs: Pairs | None = None) -> None:
        self.revision = revision
        self.pairs: Pairs = {} if pairs is None else pairs
        self._hash = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self.revision == other.revision and self.pairs == other.pairs

    def __hash__(self) -> int:
        if not self._hash:
            self._hash = hash((self.revision, frozenset(self.pairs.values())))
        return self._hash

    def range(self, key: bytes, end: bytes) -> list[KeyValue]:
        """The pairs of a range, by key."""
        return _range(self.pairs, key, end)


class Step(NamedTuple):
    """What a request gives. ``changed`` are the keys put or deleted; with none, the state is the
    same object as before."""

    result: Result
    state: State
    changed: tuple[bytes, ...]


def execute(state: State, request: Request) -> Step:
    """Carry a request out."""
    if isinstance(request, Get):
        return Step(_get(state.pairs, state.revision, request), state, ())
    work = _Work(state)
    result = work.run(request)
    if not work.changed:
        return Step(result, state, ())
    return Step(result, State(work.revision, work.pairs), tuple(work.changed))


def agrees(expected: Result, told: Result) -> bool:
    """Whether a client may have been told this, if ``expected`` is right. Revisions of 0 in what
    it was told are not known."""
    if expected == told:
        return True
    if told.revision not in (0, expected.revision) or type(expected) is not type(told):
        return False
    if isinstance(expected, PutResult) and isinstance(told, PutResult):
        return _same(expected.prev, told.prev)
    if isinstance(expected, GetResult) and isinstance(told, GetResult):
        return expected.count == told.count and _all_same(expected.kvs, told.kvs)
    if isinstance(expected, DeleteResult) and isinstance(told, DeleteResult):
        return expected.deleted == told.deleted and _all_same(expected.prev, told.prev)
    if isinstance(expected, TxnResult) and isinstance(told, TxnResult):
        return (
            expected.succeeded == told.succeeded
            and len(expected.results) == len(told.results)
            and all(map(_inner_agrees, expected.results, told.results))
        )
    return True


def events_of(before: State, after: State, changed: Iterable[bytes]) -> tuple[Event, ...]:
    """What a watch is sent of a step."""
    events = []
    for key in changed:
        kv, prev = after.pairs.get(key), before.pairs.get(key)
        if kv is None:
            events.append(Event("delete", KeyValue(key, b"", mod=after.revision), prev))
        else:
            events.append(Event("put", kv, prev))
    return tuple(events)


class _Work:
    """One request on its way: pairs are copied with the first change."""

    def __init__(self, state: State) -> None:
        self.pairs: dict[bytes, KeyValue] = state.pairs  # type: ignore[assignment] # until copied
        self.begin = state.revision
        self.changed: list[bytes] = []

    @property
    def revision(self) -> int:
        return self.begin + 1 if self.changed else self.begin

    def run(self, request: Request) -> Result:
        if isinstance(request, Put):
            return self._put(request)
        if isinstance(request, Delete):
            doomed = _range(self.pairs, request.key, request.end)
            self._remove(kv.key for kv in doomed)
            prev = tuple(doomed) if request.prev else ()
            return DeleteResult(self.revision, len(doomed), prev)
        if isinstance(request, Txn):
            return self._txn(request)
        if isinstance(request, Revoke):
            lease = request.lease
            self._remove(sorted(k for k, kv in self.pairs.items() if kv.lease == lease and lease))
            return RevokeResult(self.revision)
        return _get(self.pairs, self.revision, request)

    def _txn(self, txn: Txn) -> TxnResult:
        succeeded = all(_holds(self.pairs, compare) for compare in txn.compares)
        results = tuple([self.run(each) for each in (txn.success if succeeded else txn.failure)])
        return TxnResult(self.revision, succeeded, results)

    def _change(self, key: bytes) -> None:
        if not self.changed:
            self.pairs = dict(self.pairs)
        self.changed.append(key)

    def _put(self, put: Put) -> PutResult:
        self._change(put.key)
        before = self.pairs.get(put.key)
        revision = self.revision
        create, version = (before.create, before.version + 1) if before else (revision, 1)
        self.pairs[put.key] = KeyValue(put.key, put.value, create, revision, version, put.lease)
        return PutResult(revision, before if put.prev else None)

    def _remove(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._change(key)
            del self.pairs[key]


def _range(pairs: Pairs, key: bytes, end: bytes) -> list[KeyValue]:
    if not end:
        return [pairs[key]] if key in pairs else []
    return [pairs[each] for each in sorted(pairs) if in_range(each, key, end)]


def _get(pairs: Pairs, revision: int, get: Get) -> GetResult:
    kvs = _range(pairs, get.key, get.end)
    return GetResult(revision, tuple(kvs[: get.limit] if get.limit else kvs), len(kvs))


def _holds(pairs: Pairs, compare: Compare) -> bool:
    relation = _RELATIONS[compare.relation]
    found = _range(pairs, compare.key, compare.end)
    if not found:  # a missing key has no value to compare; its numbers count as 0
        return compare.target != "value" and relation(0, compare.operand)
    return all(relation(getattr(kv, compare.target), compare.operand) for kv in found)


def _inner_agrees(expected: Result, told: Result) -> bool:
    """For the results inside a transaction: etcd's have headers of little use."""
    return agrees(_without_revision(expected), _without_revision(told))


def _without_revision(result: Result) -> Result:
    if isinstance(result, PutResult):
        return PutResult(0, result.prev)
    if isinstance(result, GetResult):
        return GetResult(0, result.kvs, result.count)
    if isinstance(result, DeleteResult):
        return DeleteResult(0, result.deleted, result.prev)
    if isinstance(result, TxnResult):
        return TxnResult(0, result.succeeded, result.results)
    return RevokeResult()


def _same(expected: KeyValue | None, told: KeyValue | None) -> bool:
    if expected is None or told is None:
        return expected is told
    return expected == told or (not told.mod and expected[:2] == told[:2])


def _all_same(expected: tuple[KeyValue, ...], told: tuple[KeyValue, ...]) -> bool:
    return len(expected) == len(told) and all(map(_same, expected, told))
