"""Whether a history of an etcd cluster's clients is linearizable.

::

    verdict = check(history)
    assert verdict.ok, verdict.explanation

A history is linearizable if every operation can be given one moment between its start and its end
so that all results are those of `kvmodel` when the operations happen at these moments (Herlihy and
Wing, 1990). The search is Wing and Gong's in the form of Lowe ("Testing for linearizability",
2017): depth first over the operations in flight, remembering which sets of operations with which
state have been tried. What makes it fast are etcd's revisions, which order all writes and say
between which two each read lies; only who made a revision that no answer claims has to be searched.
Without revisions, keys that no operation connects are checked apart.

What members say to have applied (``applied``) settles who made a revision even where many outcomes
are not known. It is believed only where it speaks against an order, never in place of one: an order
must still give all results, each in its time.

All writers of the key space must be in the history if revisions are, those of leases that expire
too (as `Revoke` with an unknown outcome). Serializable reads, and those of old revisions, have no
place in the order: they are compared with the state at their revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from kvorum.testing.evidence import Evidence, Makers, keys_of, out_of_order, writes
from kvorum.testing.history import Event, Get, Operation, Revoke, Txn, in_range
from kvorum.testing.kvmodel import State, agrees, events_of, execute
from kvorum.testing.linked import InFlight
from kvorum.testing.watch_guarantees import Writes

MAX_STEPS: Final = 2_000_000
NOTHING: Final[Writes] = MappingProxyType({})
SHOWN: Final = 12
"""Operations and keys that an explanation names."""


class Undecided(Exception):
    """The search was given up; it can take exponential time where little is known."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``order`` is an order that explains the history, in parts that do not touch one another;
    ``events`` the changes of each revision along it, if there are revisions. ``explanation`` says
    what is wrong, and ``window`` has the operations that it rests on."""

    ok: bool
    order: list[Operation] = field(default_factory=list)
    events: dict[int, tuple[Event, ...]] = field(default_factory=dict)
    explanation: str = ""
    window: list[Operation] = field(default_factory=list)


def check(
    history: Iterable[Operation],
    *,
    initial: State | None = None,
    events: Iterable[Event] = (),
    applied: Writes = NOTHING,
    max_steps: int = MAX_STEPS,
) -> Verdict:
    """Judge a history that began at ``initial`` (the empty key space). ``events``, as watches were
    sent them, are evidence too; so is what members ``applied``: all events of those revisions of
    which it is known.

    Raises:
        Undecided: after ``max_steps`` steps.
    """
    operations = list(history)
    evidence = Evidence(operations, events, applied)
    if evidence.conflict:
        return Verdict(False, explanation=evidence.conflict)
    wrong = out_of_order(operations)
    if wrong:
        text = "the second of these came after the first, but has no newer revision:"
        return Verdict(
            False, explanation="\n".join([text, *(f"  {op}" for op in wrong)]), window=wrong
        )
    start = initial or State()
    if evidence.has_revisions:
        return _Search(operations, evidence, start, max_steps).verdict()
    order: list[Operation] = []
    for part in components(operations):
        verdict = _Search(part, evidence, start, max_steps).verdict()
        if not verdict.ok:
            return verdict
        order += verdict.order
    return Verdict(True, order)


def components(history: Sequence[Operation]) -> list[list[Operation]]:
    """Operations by groups of keys that no operation connects. Each group is linearizable on its
    own if and only if all of it is (Herlihy and Wing, locality)."""
    known = sorted({key for op in history for key, end in keys_of(op.request) if not end})
    group = {key: key for key in known}

    def root(key: bytes) -> bytes:
        while group[key] != key:
            group[key] = key = group[group[key]]
        return key

    touched: list[list[bytes]] = []
    for op in history:
        keys = [k for lo, hi in keys_of(op.request) for k in known if in_range(k, lo, hi)]
        if isinstance(op.request, Revoke) or _compares_revisions(op.request):
            keys = known
        touched.append(keys or [b""])
        group.setdefault(touched[-1][0], touched[-1][0])
        for key in keys[1:]:
            group[root(key)] = root(keys[0])
    parts: dict[bytes, list[Operation]] = {}
    for op, keys in zip(history, touched, strict=True):
        parts.setdefault(root(keys[0]), []).append(op)
    return list(parts.values())


def _compares_revisions(request: object) -> bool:
    return isinstance(request, Txn) and any(
        compare.target in ("create", "mod") and compare.operand for compare in request.compares
    )


class _Move(NamedTuple):
    """An operation that may come next, and the state after it. ``place`` is that among the
    operations with a result; -1 - i is the i-th of those without."""

    place: int
    operation: Operation
    state: State
    changed: tuple[bytes, ...]
    since: float


class _Search:
    """Depth first, on a stack of its own: one level for each operation."""

    def __init__(
        self, history: Sequence[Operation], evidence: Evidence, initial: State, max_steps: int
    ) -> None:
        self._evidence = evidence
        self._initial = initial
        self._steps_left = max_steps
        known = [op for op in history if op.result is not None and not _is_apart(op)]
        unknown = [op for op in history if op.result is None and not isinstance(op.request, Get)]
        self._known = sorted(known, key=lambda op: op.start)
        self._unknown = sorted(unknown, key=lambda op: op.start)
        self._flying = InFlight([(op.start, op.end) for op in self._known])
        self._makers = Makers(self._unknown)
        self._used = 0  # bits of unknown operations
        self._path: list[_Move] = []
        self._seen: set[tuple[int, int, State]] = set()
        self._deepest = -1
        self._stuck: tuple[list[_Move], State, list[int]] = ([], initial, [])

    # The search

    def verdict(self) -> Verdict:
        why = self._evidence.contradicts(self._initial, (), -float("inf"))
        if why:
            return Verdict(False, explanation=why)
        if not self._run():
            return self._failure()
        events = {}
        before = self._initial
        for move in self._path:
            if move.changed and self._evidence.has_revisions:
                events[move.state.revision] = events_of(before, move.state, move.changed)
            before = move.state
        return Verdict(True, [move.operation for move in self._path], events)

    def _run(self) -> bool:
        levels = [self._moves(self._initial, -float("inf"))]
        while not self._is_done():
            move = next(levels[-1], None)
            if move is not None:
                self._take(move)
                levels.append(self._moves(move.state, move.since))
                continue
            self._note_dead_end()
            levels.pop()
            if not levels:
                return False
            self._give_back()
        return True

    def _is_done(self) -> bool:
        state = self._path[-1].state if self._path else self._initial
        return not self._flying.left and state.revision >= self._evidence.reach

    def _take(self, move: _Move) -> None:
        self._path.append(move)
        if move.place >= 0:
            self._flying.take(move.place)
        else:
            self._used |= 1 << (-1 - move.place)

    def _give_back(self) -> None:
        move = self._path.pop()
        if move.place >= 0:
            self._flying.give_back(move.place)
        else:
            self._used &= ~(1 << (-1 - move.place))

    def _moves(self, state: State, since: float) -> Iterator[_Move]:
        """The moves that are worth trying from here.

        A result that fits and changes nothing can be taken at once: it bars no other way. Then, if
        somebody says to have made the next revision, nobody else can have.
        """
        choices = []
        for place in list(self._flying):
            move = self._fits(state, since, self._known[place], place)
            if move is not None and not move.changed:
                yield move
                return
            if move is not None:
                choices.append(move)
        owner = self._evidence.writer.get(state.revision + 1)
        if owner is not None:
            choices = [move for move in choices if move.operation is owner]
        else:
            choices += self._unknown_moves(state, since)
        if len(choices) < 2 or self._is_new(state):
            yield from choices

    def _is_new(self, state: State) -> bool:
        """Whether these operations have not led to this state before."""
        key = (self._flying.taken, self._used, state)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _fits(self, state: State, since: float, operation: Operation, place: int) -> _Move | None:
        told = operation.result
        assert told is not None
        after = state.revision + writes(operation.request, told)
        if isinstance(operation.request, Revoke):
            after = told.revision
        if told.revision not in (0, after) or self._why_not(state, operation):
            return None
        return self._move(state, since, operation, place)

    def _unknown_moves(self, state: State, since: float) -> Iterator[_Move]:
        """Those that change something; the rest need never happen. Nor need what would come after
        all that anybody has seen."""
        evidence = self._evidence
        if evidence.tells_all and state.revision >= evidence.reach:
            return
        deadline = self._flying.deadline()
        for number in self._makers.of(evidence.applied.get(state.revision + 1, ())):
            operation = self._unknown[number]
            if operation.start > deadline:
                return
            if not self._used >> number & 1:
                move = self._move(state, since, operation, -1 - number)
                if move is not None and move.changed:
                    yield move

    def _move(self, state: State, since: float, operation: Operation, place: int) -> _Move | None:
        """The step, unless something is known that contradicts it."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise Undecided("too little is known of this history to decide it in time")
        step = execute(state, operation.request)
        if step.changed or (operation.result is not None and operation.result.revision):
            since = max(since, operation.start)
        if step.changed and self._evidence.contradicts(step.state, step.changed, since):
            return None
        return _Move(place, operation, step.state, step.changed, since)

    def _why_not(self, state: State, operation: Operation) -> str:
        """How an operation's result differs from what it would be at ``state``."""
        told, request = operation.result, operation.request
        assert told is not None
        if isinstance(request, Get) and request.revision:
            expected = state.revision
            return "" if told.revision in (0, expected) else f"the revision would be {expected}"
        result = execute(state, request).result
        return "" if agrees(result, told) else f"the result would be {result}"

    # Why it failed

    def _note_dead_end(self) -> None:
        depth = self._flying.taken.bit_count()
        if depth > self._deepest:
            self._deepest = depth
            state = self._path[-1].state if self._path else self._initial
            self._stuck = (list(self._path), state, list(self._flying))

    def _failure(self) -> Verdict:
        path, state, in_flight = self._stuck
        stuck = [self._known[place] for place in in_flight]
        owner = self._evidence.writer.get(state.revision + 1)
        lines = [
            f"not linearizable: {self._deepest} of {len(self._known)} operations fit, up to"
            f" revision {state.revision}; then none of those in flight can come next:"
        ]
        lines += [f"  {op}\n    {self._complaint(state, op)}" for op in stuck[:SHOWN]]
        if owner is None and self._evidence.has_revisions:
            lines.append(f"  and no operation explains revision {state.revision + 1}")
            lines += [f"  {event}" for event in self._evidence.applied.get(state.revision + 1, ())]
        elif owner is not None and owner not in stuck:
            lines.append(f"  revision {state.revision + 1} was made by one that began later:")
            lines.append(f"  {owner}")
            stuck.append(owner)
        recent = [move.operation for move in path[-SHOWN:]]
        lines += ["after", *(f"  {op}" for op in recent), "which leave", *_shown(state, stuck)]
        return Verdict(False, explanation="\n".join(lines), window=[*recent, *stuck])

    def _complaint(self, state: State, operation: Operation) -> str:
        why = self._why_not(state, operation)
        if why:
            return why
        step = execute(state, operation.request)
        why = self._evidence.contradicts(step.state, step.changed, operation.start)
        return why or "it fits, but what follows does not"


def _is_apart(operation: Operation) -> bool:
    """A read that has no place in the order."""
    return isinstance(operation.request, Get) and operation.request.serializable


def _shown(state: State, operations: Iterable[Operation]) -> list[str]:
    """The keys in question."""
    ranges = [each for op in operations for each in keys_of(op.request)]
    wanted = [kv for kv in state.range(b"", b"\0") if any(in_range(kv.key, *r) for r in ranges)]
    return [f"  {kv}" for kv in wanted[:SHOWN]] or ["  none of their keys"]
