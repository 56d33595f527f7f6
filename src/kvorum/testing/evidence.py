"""What a history tells about single revisions, whatever the order of its operations.

Every answer names revisions: its own, in the header, and those at which the pairs in it were
written. Together they say of most revisions who made them, of some what they did, and of many keys
when they did *not* change. The search for an order need not try what contradicts this.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
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
    Revoke,
    Txn,
    TxnResult,
)
from kvorum.testing.kvmodel import State, agrees, execute


class Evidence:
    """Read off a history, off the events that watches were sent, and off what members ``applied``
    at a revision, which then has changed nothing else.

    ``writer`` gives the operation that made a revision, where one says so; ``conflict`` is what
    two answers tell differently. ``reach`` is the highest revision that somebody has seen;
    ``tells_all``: no result leaves open at which revision it was, so none was after ``reach``.
    All of it only rules orders out: an order that it leaves explains the history as it would
    without.
    """

    def __init__(
        self,
        history: Iterable[Operation],
        events: Iterable[Event],
        applied: Mapping[int, Sequence[Event]],
    ) -> None:
        self.writer: dict[int, Operation] = {}
        self.conflict = ""
        self.reach = 0
        self.has_revisions = False
        self.tells_all = True
        self.applied = applied
        self._written: dict[int, dict[bytes, KeyValue | None]] = {}
        self._spans: dict[bytes, list[tuple[int, int]]] = {}
        self._pins: dict[int, list[Operation]] = {}
        for operation in history:
            if operation.result is not None:
                self._take(operation, operation.result)
        for event in events:
            self._add_event(event, "as")
        for event in chain.from_iterable(applied.values()):
            self._add_event(event, "applied as")
        self._changed = {at: {event.kv.key for event in made} for at, made in applied.items()}
        self._unchanged = {key: _Spans(spans) for key, spans in self._spans.items()}

    def _take(self, operation: Operation, result: Result) -> None:
        revision = result.revision
        request = operation.request
        if revision:
            self.has_revisions = True
            self.reach = max(self.reach, revision)
            if writes(request, result):
                self._claim(revision, operation)
        else:
            self.tells_all = False
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

    def _add_event(self, event: Event, how: str) -> None:
        self.has_revisions = True
        written = None if event.kind == "delete" else event.kv
        self._add_written(event.kv.key, event.kv.mod, written, how)

    def _add_written(self, key: bytes, revision: int, kv: KeyValue | None, how: str = "as") -> None:
        self.reach = max(self.reach, revision)
        written = self._written.setdefault(revision, {})
        if written.setdefault(key, kv) != kv:
            seen = f"revision {revision} of {key!r} was seen as {written[key]}"
            self._complain(f"{seen} and {how} {kv}")

    def _complain(self, conflict: str) -> None:
        self.conflict = self.conflict or conflict

    def contradicts(self, state: State, changed: Sequence[bytes], since: float) -> str:
        """Why ``state``, made by changing these keys and not before ``since``, cannot be; "" if it
        can."""
        revision = state.revision
        made = self._changed.get(revision)
        if changed and made is not None and made != set(changed):
            keys = sorted(set(changed))
            return f"revision {revision} would change {keys}, but was applied to {sorted(made)}"
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


class Makers:
    """Which of some operations may have made a revision, by what was applied at it; by number."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._all = range(len(operations))
        self._putting: dict[tuple[bytes, bytes], list[int]] = {}
        self._removing: list[int] = []
        for number, operation in enumerate(operations):
            parts = list(_parts(operation.request))
            for put in {(part.key, part.value) for part in parts if isinstance(part, Put)}:
                self._putting.setdefault(put, []).append(number)
            if any(isinstance(part, Delete | Revoke) for part in parts):
                self._removing.append(number)

    def of(self, made: Sequence[Event]) -> Sequence[int]:
        """``made``: all events of the revision; all operations may have if there are none."""
        if not made:
            return self._all
        event = made[0]
        if event.kind == "delete":
            return self._removing
        return self._putting.get((event.kv.key, event.kv.value), ())


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


def _parts(request: Request) -> Iterator[Request]:
    """A request, or what is in it."""
    if isinstance(request, Txn):
        for each in request.success + request.failure:
            yield from _parts(each)
    else:
        yield request


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
