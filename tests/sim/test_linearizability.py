"""The checker of client histories: good ones pass, and every kind of spoiling is found."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.testing.history import (
    Compare,
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
from kvorum.testing.kvmodel import State, agrees, events_of, execute
from kvorum.testing.linearizability import Undecided, check, components

KEYS = [b"a", b"b", b"c", b"d"]


class Author:
    """Writes histories that are linearizable: operations happen one by one, at moments within
    intervals that overlap."""

    def __init__(
        self, seed: int, *, unknown: float = 0.0, revisions: bool = True, keys: int = 4
    ) -> None:
        self.rng = random.Random(seed)
        self.unknown = unknown
        self.revisions = revisions
        self.keys = KEYS[:keys]
        self.state = State()
        self.leases: list[int] = []
        self.values = 0
        self.applied: dict[int, tuple[Event, ...]] = {}

    def write(self, count: int, *, overlap: float = 3.0) -> list[Operation]:
        """``count`` operations, about ``overlap`` of them in flight at any time."""
        rng = self.rng
        history = []
        for number in range(count):
            request = self._request()
            start = number - rng.random() * overlap
            end = number + rng.random() * overlap
            result: Result | None = None
            if rng.random() >= self.unknown:
                result = self._carry_out(request)
            elif rng.random() < 0.5:
                self._carry_out(request)
            history.append(Operation(number, request, start, end, result))
        rng.shuffle(history)
        return history

    def _carry_out(self, request: Request) -> Result:
        before = self.state
        result, self.state, changed = execute(before, request)
        if changed:
            self.applied[self.state.revision] = events_of(before, self.state, changed)
        return result if self.revisions else _without_revisions(result)

    def _value(self) -> bytes:
        self.values += 1
        return b"%d" % self.values

    def _put(self) -> Put:
        rng = self.rng
        lease = rng.choice([0, 0, 7, 8]) if self.revisions else 0
        return Put(rng.choice(self.keys), self._value(), lease, prev=rng.random() < 0.3)

    def _request(self) -> Request:
        rng = self.rng
        key = rng.choice(self.keys)
        dice = rng.random()
        if dice < 0.4:
            return self._put()
        if dice < 0.65:
            return rng.choice([Get(key), Get(b"a", b"c"), Get(b"\0", b"\0", limit=2)])
        if dice < 0.75:
            return rng.choice([Delete(key), Delete(b"b", b"\0", prev=True)])
        if dice < 0.8 and self.revisions:
            return Revoke(rng.choice([7, 8]))
        return self._txn(key)

    def _txn(self, key: bytes) -> Txn:
        rng = self.rng
        found = self.state.pairs.get(key)
        mod = found.mod if found else 0
        guess = mod if rng.random() < 0.7 or not self.revisions else mod + 1
        compare = Compare(key, "version", "=", 0)
        if self.revisions:
            compare = Compare(key, "mod", rng.choice(["=", ">"]), guess)
        other = rng.choice([k for k in self.keys if k != key] or [key])
        success: tuple[Request, ...] = (self._put(), Get(key), Get(other))
        return Txn((compare,), success, (Delete(key), Get(b"a", b"\0")))


def _without_revisions(result: Result) -> Result:
    def bare(kv: KeyValue) -> KeyValue:
        return KeyValue(kv.key, kv.value)

    if isinstance(result, PutResult):
        return PutResult(0, bare(result.prev) if result.prev else None)
    if isinstance(result, GetResult):
        return GetResult(0, tuple(map(bare, result.kvs)), result.count)
    if isinstance(result, DeleteResult):
        return DeleteResult(0, result.deleted, tuple(map(bare, result.prev)))
    assert isinstance(result, TxnResult)
    return TxnResult(0, result.succeeded, tuple(map(_without_revisions, result.results)))


def explained(history: list[Operation]) -> bool:
    """The same judgement by trying every order: for half a dozen operations."""
    known = [op for op in history if op.result is not None]
    unknown = [op for op in history if op.result is None]
    for extra in range(len(unknown) + 1):
        for chosen in permutations(unknown, extra):
            for order in permutations([*known, *chosen]):
                if len(set(map(id, order))) == len(order) and _fits(order):
                    return True
    return False


def _fits(order: tuple[Operation, ...]) -> bool:
    state, moment = State(), -float("inf")
    for operation in order:
        end = operation.end if operation.result is not None else float("inf")
        moment = max(moment, operation.start)
        result, state, _ = execute(state, operation.request)
        if moment > end or (operation.result and not agrees(result, operation.result)):
            return False
    return True


# Good ones


@pytest.mark.parametrize("unknown", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(6))
def test_a_history_of_one_machine_is_linearizable(seed: int, unknown: float) -> None:
    history = Author(seed, unknown=unknown).write(400)
    verdict = check(history)
    assert verdict.ok, verdict.explanation
    assert len(verdict.order) >= sum(op.result is not None for op in history)


@pytest.mark.parametrize("seed", range(6))
def test_so_it_is_when_nothing_is_known_of_revisions(seed: int) -> None:
    history = Author(seed, unknown=0.02, revisions=False).write(80)
    verdict = check(history)
    assert verdict.ok, verdict.explanation


def test_the_order_found_gives_the_results_told() -> None:
    verdict = check(Author(3, unknown=0.1).write(300))
    state = State()
    for operation in verdict.order:
        result, state, _ = execute(state, operation.request)
        assert operation.result is None or agrees(result, operation.result)
    assert sorted(verdict.events) == list(range(2, state.revision + 1))


def test_ten_thousand_operations_take_seconds() -> None:
    history = Author(1, unknown=0.02).write(10_000, overlap=10)
    began = time.process_time()
    verdict = check(history)
    assert verdict.ok, verdict.explanation
    assert time.process_time() - began < 10


def test_keys_that_nothing_connects_are_judged_apart() -> None:
    history = [
        Operation(1, Put(b"a", b"1"), 0, 1, PutResult()),
        Operation(2, Put(b"b", b"1"), 0, 1, PutResult()),
        Operation(3, Delete(b"c", b"e"), 0, 1, DeleteResult(0, 0)),
        Operation(4, Put(b"c", b"1"), 2, 3, PutResult()),
        Operation(5, Put(b"d", b"1"), 2, 3, PutResult()),
    ]
    parts = [sorted(op.client for op in part) for part in components(history)]
    assert sorted(parts) == [[1], [2], [3, 4, 5]]


# Bad ones, by hand


def put(client: int, start: float, end: float, revision: int, value: bytes = b"") -> Operation:
    value = value or b"%d" % client
    return Operation(client, Put(b"a", value), start, end, PutResult(revision))


def get(client: int, start: float, end: float, revision: int, *kvs: KeyValue) -> Operation:
    return Operation(client, Get(b"a"), start, end, GetResult(revision, kvs, len(kvs)))


FIRST = KeyValue(b"a", b"1", 2, 2, 1)
SECOND = KeyValue(b"a", b"2", 2, 3, 2)


def test_a_stale_read_is_found() -> None:
    history = [put(1, 0, 1, 2), put(2, 2, 3, 3), get(3, 4, 5, 2, FIRST)]
    verdict = check(history)
    assert not verdict.ok
    assert "client 2" in verdict.explanation
    assert "client 3" in verdict.explanation


def test_a_stale_read_is_found_without_revisions() -> None:
    bare = KeyValue(b"a", b"1")
    history = [put(1, 0, 1, 0), put(2, 2, 3, 0), get(3, 4, 5, 0, bare)]
    assert not check(history).ok
    assert check([*history[:2], get(3, 2.5, 5, 0, bare)]).ok


def test_reads_that_see_two_writes_in_different_orders_are_found() -> None:
    bare1, bare2 = KeyValue(b"a", b"1"), KeyValue(b"a", b"2")
    history = [put(1, 0, 10, 0), put(2, 0, 10, 0)]
    back_and_forth = [get(3, 1, 2, 0, bare1), get(3, 3, 4, 0, bare2), get(4, 5, 6, 0, bare1)]
    assert not check(history + back_and_forth).ok
    assert check(history + back_and_forth[:2]).ok


def test_an_acknowledged_write_that_nobody_sees_is_found() -> None:
    history = [put(1, 0, 1, 2), put(2, 2, 3, 3), get(3, 4, 5, 3, FIRST)]
    assert not check(history).ok


def test_a_write_that_timed_out_may_come_late_or_never() -> None:
    late = Operation(2, Put(b"a", b"2"), 2, 3)
    assert check([put(1, 0, 1, 2), late, get(3, 4, 5, 2, FIRST), get(3, 6, 7, 3, SECOND)]).ok
    assert check([put(1, 0, 1, 2), late, get(3, 4, 5, 2, FIRST)]).ok


def test_a_write_that_timed_out_comes_once_and_not_before_it_began() -> None:
    late = Operation(2, Put(b"a", b"2"), 5, 6)
    third = KeyValue(b"a", b"3", 2, 4, 3)
    again = KeyValue(b"a", b"2", 2, 5, 4)
    assert not check([put(1, 0, 1, 2), late, get(3, 2, 3, 3, SECOND)]).ok
    twice = [put(1, 0, 1, 2), late, get(3, 6, 7, 3, SECOND), put(4, 8, 9, 4, b"3")]
    assert check([*twice, get(3, 10, 11, 4, third)]).ok
    assert not check([*twice, get(3, 10, 11, 5, again)]).ok


def test_two_writes_of_one_revision_are_found() -> None:
    verdict = check([put(1, 0, 1, 2), put(2, 0, 1, 2)])
    assert "two writes" in verdict.explanation


def test_a_revision_that_nobody_made_is_found() -> None:
    verdict = check([put(1, 0, 1, 2), put(2, 2, 3, 4)])
    assert "no operation explains revision 3" in verdict.explanation


def test_a_transaction_seen_half_is_found() -> None:
    both = Txn((), (Put(b"a", b"1"), Put(b"b", b"1")))
    done = Operation(1, both, 0, 1, TxnResult(2, True, (PutResult(), PutResult())))
    half = Operation(2, Get(b"a", b"c"), 0, 1, GetResult(2, (FIRST,), 1))
    whole = GetResult(2, (FIRST, KeyValue(b"b", b"1", 2, 2, 1)), 2)
    assert check([done, replace(half, result=whole)]).ok
    assert not check([done, half]).ok


def test_a_transaction_that_took_the_wrong_branch_is_found() -> None:
    create = Txn((Compare(b"a", "create", "=", 0),), (Put(b"a", b"2"),))
    failed = Operation(2, create, 2, 3, TxnResult(2, False))
    assert check([put(1, 0, 1, 2), failed]).ok
    assert not check([put(1, 4, 5, 2), replace(failed, result=TxnResult(1, False))]).ok
    stolen = TxnResult(3, True, (PutResult(),))
    assert not check([put(1, 0, 1, 2), replace(failed, result=stolen)]).ok


def test_keys_of_a_lease_go_as_one_revision() -> None:
    def leased(key: bytes, revision: int) -> Operation:
        request = Put(key, b"x", lease=7)
        return Operation(1, request, revision, revision + 0.5, PutResult(revision))

    expiry = Operation(0, Revoke(7), 4)
    survivor = KeyValue(b"b", b"x", 3, 3, 1, 7)
    all_gone = Operation(2, Get(b"a", b"c"), 5, 6, GetResult(4, (), 0))
    half_gone = replace(all_gone, result=GetResult(4, (survivor,), 1))
    assert check([leased(b"a", 2), leased(b"b", 3), expiry, all_gone]).ok
    assert not check([leased(b"a", 2), leased(b"b", 3), expiry, half_gone]).ok


def test_a_serializable_read_may_be_old_but_not_wrong() -> None:
    def read(revision: int, start: float, *kvs: KeyValue) -> Operation:
        result = GetResult(revision, kvs, len(kvs))
        return Operation(9, Get(b"a", serializable=True), start, start + 1, result)

    writes = [put(1, 0, 1, 2), put(2, 2, 3, 3)]
    assert check([*writes, read(2, 10, FIRST), read(3, 11, SECOND), read(1, 12)]).ok
    assert not check([*writes, read(3, 10, FIRST)]).ok
    assert not check([*writes, read(3, 0, SECOND)]).ok  # it was not written yet
    assert not check([*writes, read(4, 10, SECOND)]).ok


def test_a_read_of_an_old_revision_is_compared_with_it() -> None:
    def read(*kvs: KeyValue) -> Operation:
        return Operation(9, Get(b"a", revision=2), 4, 5, GetResult(3, kvs, len(kvs)))

    writes = [put(1, 0, 1, 2), put(2, 2, 3, 3)]
    assert check([*writes, read(FIRST)]).ok
    assert not check([*writes, read(SECOND._replace(mod=2))]).ok


def test_what_watches_saw_is_evidence() -> None:
    late = [Operation(n, Put(b"a", b"%d" % n), 0, 1) for n in (1, 2)]
    seen = Event("put", SECOND)
    assert check([*late], events=[seen]).ok
    assert not check([*late], events=[seen, Event("put", FIRST._replace(value=b"3"))]).ok
    assert not check(late, events=[Event("delete", KeyValue(b"a", b"", mod=2))]).ok


# What members applied, as evidence


def of_nobody_told(count: int) -> tuple[list[Operation], dict[int, tuple[Event, ...]]]:
    """Puts of which nobody was told, and the order that they had."""
    late = [Operation(n, Put(b"a", b"%d" % n), 0, 1) for n in range(count)]
    state, applied = State(), {}
    for operation in random.Random(1).sample(late, count):
        before, (_, state, changed) = state, execute(state, operation.request)
        applied[state.revision] = events_of(before, state, changed)
    return [*late, get(99, 2, 3, count + 1, state.pairs[b"a"])], applied


def test_what_was_applied_settles_many_unknown_outcomes() -> None:
    history, applied = of_nobody_told(200)
    with pytest.raises(Undecided):
        check(history, max_steps=20_000)
    verdict = check(history, applied=applied, max_steps=500)
    assert verdict.ok, verdict.explanation
    assert verdict.events == applied


def test_it_decides_also_against_such_a_history() -> None:
    """Without trying what might have come after all that anybody has seen."""
    history, applied = of_nobody_told(200)
    never = [Operation(n, Put(b"a", b"never %d" % n), 0, 1) for n in range(200)]
    too_much = {201: (Event("put", KeyValue(b"a", b"nobody's", 2, 201, 200)),)}
    assert check([*never, *history], applied=applied, max_steps=500).ok
    gone = get(98, 2, 3, 201)
    assert not check([*never, *history, gone], applied=applied, max_steps=1_000).ok
    assert not check([*never, *history[:-1]], applied={**applied, **too_much}, max_steps=500).ok


def test_what_was_applied_is_a_revision_that_somebody_has_seen() -> None:
    late = [Operation(n, Put(b"a", b"%d" % n), 0, 1) for n in (1, 2)]
    verdict = check(late, applied={2: [Event("put", FIRST)], 3: [Event("put", SECOND)]})
    assert [operation.client for operation in verdict.order] == [1, 2]


def test_a_write_applied_twice_is_found() -> None:
    once = {2: [Event("put", FIRST)]}
    again = Event("put", FIRST._replace(mod=3, version=2))
    for known in (put(1, 0, 1, 2), Operation(1, Put(b"a", b"1"), 0, 1)):
        assert check([known], applied=once).ok
        verdict = check([known], applied={**once, 3: [again]})
        assert not verdict.ok
        assert "no operation explains revision 3" in verdict.explanation
        assert str(again) in verdict.explanation


def test_an_acknowledged_write_that_was_not_applied_is_found() -> None:
    late = Operation(2, Put(b"a", b"2"), 0, 9)
    applied = {2: [Event("put", FIRST)], 3: [Event("put", SECOND)]}
    assert check([put(1, 0, 1, 2), late], applied=applied).ok
    assert not check([put(1, 0, 1, 2), late, put(3, 2, 3, 3)], applied=applied).ok


def test_a_write_applied_before_it_was_asked_for_is_found() -> None:
    applied = {2: [Event("put", FIRST)], 3: [Event("put", SECOND)]}
    late = Operation(1, Put(b"a", b"1"), 0, 1)
    assert check([late, put(2, 2, 3, 3)], applied=applied).ok
    assert not check([replace(late, start=4, end=5), put(2, 2, 3, 3)], applied=applied).ok


def test_a_stale_read_is_stale_whatever_was_applied() -> None:
    """Also where only the times speak against it."""
    history, applied = of_nobody_told(50)
    first = applied[2][0].kv
    assert not check([*history, get(1, 4, 5, 2, first)], applied=applied).ok
    bare = get(1, 4, 5, 0, KeyValue(b"a", first.value))
    assert not check([*history, bare], applied=applied).ok
    assert check([*history, replace(bare, start=1)], applied=applied).ok


def test_a_transaction_applied_half_or_with_more_is_found() -> None:
    both = Txn((), (Put(b"a", b"1"), Put(b"b", b"1")))
    events = [Event("put", KeyValue(key, b"1", 2, 2, 1)) for key in (b"a", b"b", b"c")]
    known = Operation(1, both, 0, 1, TxnResult(2, True, (PutResult(), PutResult())))
    for operation in (known, replace(known, result=None)):
        assert check([operation], applied={2: events[:2]}).ok
        assert not check([operation], applied={2: events[:1]}).ok
        assert not check([operation], applied={2: events}).ok


def test_an_answer_that_differs_from_what_was_applied_is_found() -> None:
    history = [put(1, 0, 1, 2), get(2, 2, 3, 2, FIRST._replace(value=b"2"))]
    verdict = check(history, applied={2: [Event("put", FIRST)]})
    assert "applied as" in verdict.explanation


def test_deletions_are_settled_too() -> None:
    gone = {3: [Event("delete", KeyValue(b"a", b"", mod=3))]}
    for request in (Delete(b"a"), Delete(b"a", b"\0"), Txn((), (), (Delete(b"a"),)), Revoke(7)):
        leased = Operation(1, Put(b"a", b"1", lease=7), 0, 1, PutResult(2))
        late = Operation(2, request, 2, 3)
        history = [leased, late, get(3, 4, 5, 3)]
        may = not isinstance(request, Txn)  # whose condition holds
        assert check(history, applied=gone).ok == may
        assert not check([leased, get(3, 4, 5, 3)], applied=gone).ok


def test_it_gives_up_where_nothing_can_be_known() -> None:
    rng = random.Random(5)
    history = [Operation(n, Put(b"a", b"%d" % n), 0) for n in range(40)]
    history += [
        get(99, n, n + 0.5, 0, KeyValue(b"a", b"%d" % rng.randrange(40))) for n in range(1, 30)
    ]
    with pytest.raises(Undecided):
        check([*history, get(99, 50, 51, 0, KeyValue(b"a", b"nobody's"))], max_steps=5_000)


def test_an_operation_cannot_end_before_it_starts() -> None:
    with pytest.raises(ValueError, match="ends before it starts"):
        Operation(1, Get(b"a"), 2, 1)


# Good ones, spoilt


def spoil_value(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A read returns what was never written."""
    return _change_read(rng, history, lambda kv: kv._replace(value=b"never written"))


def spoil_mod(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A pair claims another revision."""
    return _change_read(rng, history, lambda kv: kv._replace(mod=kv.mod + 1))


def spoil_version(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    return _change_read(rng, history, lambda kv: kv._replace(version=kv.version + 1))


def _change_read(rng, history, change):  # type: ignore[no-untyped-def]
    places = [
        i for i, op in enumerate(history) if isinstance(op.result, GetResult) and op.result.kvs
    ]
    if not places:
        return None
    place = rng.choice(places)
    told = history[place].result
    kvs = (change(told.kvs[0]), *told.kvs[1:])
    return _with(history, place, replace(told, kvs=kvs))


def _with(history: list[Operation], place: int, result: Result) -> list[Operation]:
    copy = list(history)
    copy[place] = replace(copy[place], result=result)
    return copy


def spoil_missing_pair(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A read leaves a pair out."""
    for place, op in enumerate(history):
        if isinstance(op.result, GetResult) and op.result.kvs:
            told = op.result
            return _with(history, place, replace(told, kvs=told.kvs[1:], count=told.count - 1))
    return None


def spoil_write_revision(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A write claims the revision of another one."""
    puts = [i for i, op in enumerate(history) if isinstance(op.result, PutResult)]
    if len(puts) < 2:
        return None
    one, other = rng.sample(puts, 2)
    result = history[other].result
    assert isinstance(result, PutResult)
    mine = history[one].result
    assert isinstance(mine, PutResult)
    return _with(history, one, replace(mine, revision=result.revision))


def spoil_deleted(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    for place, op in enumerate(history):
        if isinstance(op.result, DeleteResult) and op.result.deleted and not op.result.prev:
            return _with(history, place, replace(op.result, deleted=op.result.deleted + 1))
    return None


def spoil_branch(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    for place, op in enumerate(history):
        if isinstance(op.result, TxnResult):
            return _with(history, place, replace(op.result, succeeded=not op.result.succeeded))
    return None


def spoil_time_of_read(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A read begins only after something newer than what it saw had been acknowledged."""
    newest = max(op.result.revision for op in history if op.result is not None)
    for place, op in enumerate(history):
        if isinstance(op.result, GetResult) and 0 < op.result.revision < newest:
            copy = list(history)
            copy[place] = replace(op, start=1e9, end=2e9)
            return copy
    return None


def spoil_time_of_write(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """A write ends before the one of the revision before began."""
    for place, op in enumerate(history):
        if isinstance(op.result, PutResult) and op.result.revision > 10:
            copy = list(history)
            copy[place] = replace(op, start=-1e9, end=-0.9e9)
            return copy
    return None


def spoil_lost_write(rng: random.Random, history: list[Operation]) -> list[Operation] | None:
    """An acknowledged write was never there: its operation is missing from the history."""
    puts = [op for op in history if isinstance(op.result, PutResult)]
    if not puts:
        return None
    gone = rng.choice(puts)
    newest = max(op.result.revision for op in history if op.result is not None)
    if gone.result.revision == newest:  # type: ignore[union-attr]
        return None
    return [op for op in history if op is not gone]


SPOILERS = [
    spoil_value,
    spoil_mod,
    spoil_version,
    spoil_missing_pair,
    spoil_write_revision,
    spoil_deleted,
    spoil_branch,
    spoil_time_of_read,
    spoil_time_of_write,
    spoil_lost_write,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1_000_000))
def test_a_spoilt_history_is_found(spoil, seed: int) -> None:  # type: ignore[no-untyped-def]
    author = Author(seed)
    spoilt = spoil(random.Random(seed), author.write(60))
    if spoilt is not None:
        for applied in ({}, author.applied):
            verdict = check(spoilt, applied=applied)
            assert not verdict.ok
            assert verdict.explanation


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1_000_000),
    spoil=st.sampled_from([None, *SPOILERS]),
    revisions=st.booleans(),
)
def test_small_histories_are_judged_as_by_trying_every_order(seed, spoil, revisions) -> None:  # type: ignore[no-untyped-def]
    author = Author(seed, unknown=0.3, revisions=revisions, keys=2)
    history = author.write(5)
    assert check(history, applied=author.applied).ok
    if spoil is not None and revisions and any(op.result is not None for op in history):
        history = spoil(random.Random(seed), history) or history
    assert check(history).ok == explained(history)
    assert explained(history) or not check(history, applied=author.applied).ok
