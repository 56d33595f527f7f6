"""What a history tells about single revisions, whatever the order of its operations.

Every answer names revisions: its own, in the header, and those at which the pairs in it were
written. Together they say of most revisions who made them, of some what they did, and of many keys
when they did *not* change. The search for an order need not try what contradicts this.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import itemgetter

from kvorum.testing.history import (
    Delete,
    DeleteResult,
    Event,
    Get,
    GetResult,
    KeyValue,
    Operation,
    Put,
    PutResult,
    Request,
    Result,
    Txn,
    TxnResult,
)
from kvorum.testing.kvmodel import State, agrees, execute


class Evidence:
    """Read off a history, and off the events that watches were sent.

    ``writer`` gives the operation that made a revision, where one says so; ``conflict`` is what
    two answers tell differently. ``reach`` is the highest revision that somebody has seen.
    """

    def __init__(self, history: Iterable[Operation], events: Iterable[Event]) -> None:
        self.writer: dict[int, Operation] = {}
        self.conflict = ""
        self.reach = 0
        self.has_revisions = False
        self._written: dict[int, dict[bytes, KeyValue | None]] = {}
        self._spans: dict[bytes, list[tuple[int, int]]] = {}
        self._pins: dict[int, list[Operation]] = {}
        for operation in history:
            if operation.result is not None:
                self._take(operation, operation.result)
        for event in events:
            written = None if event.kind == "delete" else event.kv
            self._add_written(event.kv.key, event.kv.mod, written)
        self._unchanged = {key: _Spans(spans) for key, spans in self._spans.items()}

    def _take(self, operation: Operation, result: Result) -> None:
        revision = result.revision
        request = operation.request
        if revision:
            self.has_revisions = True
            self.reach = max(self.reach, revision)
            if writes(request, result):
                self._claim(revision, operation)
        if isinstance(request, Get) and isinstance(result, GetResult):
            pinned = request.revision or (revision if request.serializable else 0)
            if pinned:
                self._pins.setdefault(pinned, []).append(operation)
                self.reach = max(self.reach, pinned)
            seen_at = pinned or revision
        else:
            seen_at = revision - 1  # a write may have changed what it returns
        for kv in _pairs(result):
            if kv.mod:
                self.has_revisions = True
                self._add_written(kv.key, kv.mod, kv)
                if kv.mod < seen_at:
                    self._spans.setdefault(kv.key, []).append((kv.mod, seen_at))

    def _claim(self, revision: int, operation: Operation) -> None:
        other = self.writer.setdefault(revision, operation)
        if other is not operation:
            self._complain(f"two writes have revision {revision}:\n  {other}\n  {operation}")

    def _add_written(self, key: bytes, revision: int, kv: KeyValue | None) -> None:
        self.reach = max(self.reach, revision)
        written = self._written.setdefault(revision, {})
        if written.setdefault(key, kv) != kv:
            self._complain(f"revision {revision} of {key!r} was seen as {written[key]} and as {kv}")

    def _complain(self, conflict: str) -> None:
        self.conflict = self.conflict or conflict

    def contradicts(self, state: State, changed: Sequence[bytes], since: float) -> str:
        """Why ``state``, made by changing these keys and not before ``since``, cannot be; "" if it
        can."""
        revision = state.revision
        for key in changed:
            spans = self._unchanged.get(key)
            if spans is not None and spans.cover(revision):
                return f"{key!r} would change at revision {revision}, but was seen unchanged"
        for key, kv in self._written.get(revision, {}).items():
            mine = state.pairs.get(key)
            if mine != kv:
                return f"at revision {revision} {key!r} would be {mine}, but was seen as {kv}"
        for operation in self._pins.get(revision, ()):
            if operation.end < since:
                return f"revision {revision} was not there yet when it was read: {operation}"
            if not _holds_at(state, operation):
                return f"the state at revision {revision} is not what was read of it: {operation}"
        return ""


def out_of_order(history: Iterable[Operation]) -> list[Operation]:
    """Two operations of which the later one was told of an older revision, or of the same one
    although it wrote; empty if there are none. Such a history needs no search."""
    told = [op for op in history if op.result is not None and op.result.revision]
    told = [op for op in told if not (isinstance(op.request, Get) and op.request.serializable)]
    ended = sorted(told, key=lambda op: op.end)
    newest: Operation | None = None
    place = 0
    for operation in sorted(told, key=lambda op: op.start):
        while place < len(ended) and ended[place].end < operation.start:
            if newest is None or _revision(ended[place]) > _revision(newest):
                newest = ended[place]
            place += 1
        if newest is not None and _is_before(operation, _revision(newest)):
            return [newest, operation]
    return []


def _revision(operation: Operation) -> int:
    assert operation.result is not None
    return operation.result.revision


def _is_before(operation: Operation, revision: int) -> bool:
    assert operation.result is not None
    wrote = writes(operation.request, operation.result)
    return operation.result.revision < revision + wrote


class _Spans:
    """Half-open spans (first, last] of revisions."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        spans.sort(key=itemgetter(1))
        self._lasts = [last for _, last in spans]
        # The lowest first of this span and all that end later.
        self._firsts = list(accumulate((first for first, _ in reversed(spans)), min))[::-1]

    def cover(self, revision: int) -> bool:
        place = bisect_left(self._lasts, revision)
        return place < len(self._lasts) and self._firsts[place] < revision


def writes(request: Request, result: Result) -> bool:
    """Whether an answer shows that its request changed something; that of a `Revoke` does not."""
    if isinstance(request, Put):
        return True
    if isinstance(request, Delete) and isinstance(result, DeleteResult):
        return result.deleted > 0
    if isinstance(request, Txn) and isinstance(result, TxnResult):
        branch = request.success if result.succeeded else request.failure
        return any(map(writes, branch, result.results))
    return False


def keys_of(request: Request) -> Iterator[tuple[bytes, bytes]]:
    """The ranges that a request names."""
    if isinstance(request, Txn):
        for compare in request.compares:
            yield compare.key, compare.end
        for each in request.success + request.failure:
            yield from keys_of(each)
    elif isinstance(request, Get | Delete):
        yield request.key, request.end
    elif isinstance(request, Put):
        yield request.key, b""


def _pairs(result: Result) -> Iterator[KeyValue]:
    if isinstance(result, GetResult):
        yield from result.kvs
    elif isinstance(result, DeleteResult):
        yield from result.prev
    elif isinstance(result, PutResult):
        if result.prev is not None:
            yield result.prev
    elif isinstance(result, TxnResult):
        for each in result.results:
            yield from _pairs(each)


def _holds_at(state: State, operation: Operation) -> bool:
    told = operation.result
    assert isinstance(told, GetResult)
    expected = execute(state, operation.request).result
    assert isinstance(expected, GetResult)
    return agrees(GetResult(0, expected.kvs, expected.count), GetResult(0, told.kvs, told.count))
