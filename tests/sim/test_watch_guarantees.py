"""The checker of watches: what a good hub sends passes, and every kind of spoiling is found."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.testing.history import Delete, Event, KeyValue, Put, Request, Revoke, Txn
from kvorum.testing.kvmodel import State, events_of, execute
from kvorum.testing.watch_guarantees import (
    Response,
    Watch,
    check_watch,
    check_watches,
    gaps,
    writes_of,
)

KEYS = [b"a", b"b", b"c"]


def random_writes(rng: random.Random, count: int) -> dict[int, tuple[Event, ...]]:
    """What happens to a small key space, with transactions and deletions."""
    state, writes = State(), {}
    for number in range(count):
        key, other = rng.sample(KEYS, 2)
        request: Request = rng.choice(
            [
                Put(key, b"%d" % number, rng.choice([0, 7])),
                Put(key, b"%d" % number),
                Delete(b"a", b"\0"),
                Txn((), (Put(key, b"%d" % number), Put(other, b"%d" % number))),
                Revoke(7),
            ]
        )
        _, after, changed = execute(state, request)
        if changed:
            writes[after.revision] = events_of(state, after, changed)
        state = after
    return writes


def send(
    rng: random.Random, watch: Watch, writes: dict[int, tuple[Event, ...]], last: int
) -> Watch:
    """Have a watch sent all that it is to be sent up to a revision."""
    watch.responses.append(Response(watch.start and rng.randrange(1, 50), created=True))
    batch: list[Event] = []
    for revision in range(watch.start, last + 1):
        events = [event for event in writes.get(revision, ()) if watch.wants(event)]
        batch += [event if watch.prev else event._replace(prev=None) for event in events]
        if batch and rng.random() < 0.6:
            watch.responses.append(Response(revision, tuple(batch)))
            batch = []
        if not batch and rng.random() < 0.1:
            watch.responses.append(Response(revision))
    if batch:
        watch.responses.append(Response(last, tuple(batch)))
    return watch


def good(seed: int) -> tuple[Watch, dict[int, tuple[Event, ...]], int]:
    rng = random.Random(seed)
    writes = random_writes(rng, 60)
    key, end = rng.choice([(b"a", b""), (b"a", b"c"), (b"\0", b"\0")])
    watch = Watch(key, end, rng.randrange(1, 20), prev=rng.random() < 0.5)
    watch.puts, watch.deletes = rng.choice([(True, True), (True, False), (False, True)])
    return send(rng, watch, writes, max(writes)), writes, max(writes)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1_000_000))
def test_a_watch_that_was_sent_everything_passes(seed: int) -> None:
    watch, writes, last = good(seed)
    assert check_watch(watch, writes, until=last) == []


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1_000_000))
def test_a_watch_that_is_resumed_passes(seed: int) -> None:
    rng = random.Random(seed)
    writes = random_writes(rng, 40)
    first = send(rng, Watch(b"a", b"\0", 1), writes, 20)
    second = Watch(b"a", b"\0", first.next_start(), resumes=first)
    send(rng, second, writes, max(writes))
    assert check_watches([first, second], writes) == []
    assert check_watch(second, writes, until=max(writes)) == []


# Good ones, spoilt: each gives the promise that is broken


def _with_events(watch: Watch, wanted: int = 1) -> list[int]:
    return [i for i, r in enumerate(watch.responses) if len(r.events) >= wanted]


def drop_event(rng: random.Random, watch: Watch) -> set[str]:
    place = rng.choice(_with_events(watch)[:-1])
    response = watch.responses[place]
    watch.responses[place] = replace(response, events=response.events[1:])
    return {"reliable", "bookmarkable"}


def drop_response(rng: random.Random, watch: Watch) -> set[str]:
    del watch.responses[rng.choice(_with_events(watch)[:-1])]
    return {"reliable", "bookmarkable"}


def repeat_response(rng: random.Random, watch: Watch) -> set[str]:
    place = rng.choice(_with_events(watch))
    watch.responses.append(watch.responses[place])
    return {"unique"}


def swap_responses(rng: random.Random, watch: Watch) -> set[str]:
    one, other = sorted(rng.sample(_with_events(watch), 2))
    responses = watch.responses
    responses[one], responses[other] = responses[other], responses[one]
    return {"ordered"}


def split_revision(rng: random.Random, watch: Watch) -> set[str]:
    for place in _with_events(watch, 2):
        events = watch.responses[place].events
        for cut in range(1, len(events)):
            if events[cut - 1].kv.mod == events[cut].kv.mod:
                revision = watch.responses[place].revision
                halves = [Response(revision, events[:cut]), Response(revision, events[cut:])]
                watch.responses[place : place + 1] = halves
                return {"atomic"}
    return set()


def early_notice(rng: random.Random, watch: Watch) -> set[str]:
    place = rng.choice(_with_events(watch))
    events = watch.responses[place].events
    watch.responses.insert(place, Response(events[-1].kv.mod))
    return {"bookmarkable"}


def _pick(rng: random.Random, watch: Watch) -> tuple[int, Event]:
    place = rng.choice(_with_events(watch))
    return place, watch.responses[place].events[0]


def wrong_value(rng: random.Random, watch: Watch) -> set[str]:
    place, event = _pick(rng, watch)
    wrong = event._replace(kv=event.kv._replace(value=b"never written", version=1))
    events = (wrong, *watch.responses[place].events[1:])
    watch.responses[place] = replace(watch.responses[place], events=events)
    return {"faithful"}


def wrong_kind(rng: random.Random, watch: Watch) -> set[str]:
    place, event = _pick(rng, watch)
    wrong = event._replace(kind="put" if event.kind == "delete" else "delete")
    events = (wrong, *watch.responses[place].events[1:])
    watch.responses[place] = replace(watch.responses[place], events=events)
    return {"faithful"}


def wrong_prev(rng: random.Random, watch: Watch) -> set[str]:
    if not watch.prev:
        return set()
    place, event = _pick(rng, watch)
    wrong = event._replace(prev=KeyValue(event.kv.key, b"never written", 1, 1, 1))
    events = (wrong, *watch.responses[place].events[1:])
    watch.responses[place] = replace(watch.responses[place], events=events)
    return {"faithful"}


def invented(rng: random.Random, watch: Watch) -> set[str]:
    event = Event("put", KeyValue(watch.key, b"", 1000, 1000, 1))
    watch.responses.append(Response(1000, (event,)))
    return {"faithful"}


def cut_short(rng: random.Random, watch: Watch) -> set[str]:
    del watch.responses[_with_events(watch)[-1] :]
    return {"reliable", "bookmarkable"}


SPOILERS = [
    drop_event,
    drop_response,
    repeat_response,
    swap_responses,
    split_revision,
    early_notice,
    wrong_value,
    wrong_kind,
    wrong_prev,
    invented,
    cut_short,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1_000_000))
def test_a_spoilt_watch_is_found(spoil, seed: int) -> None:  # type: ignore[no-untyped-def]
    watch, writes, last = good(seed)
    if len(_with_events(watch)) < 3:
        return
    broken = spoil(random.Random(seed), watch)
    if broken:
        found = {violation.promise for violation in check_watch(watch, writes, until=last)}
        assert found & broken


# By hand


def put(revision: int, key: bytes = b"a") -> Event:
    return Event("put", KeyValue(key, b"v%d" % revision, revision, revision, 1))


WRITES = {n: (put(n),) for n in range(2, 8)}


def test_a_watch_from_the_present_owes_what_comes_after() -> None:
    watch = Watch(b"a", responses=[Response(3, created=True), Response(4, (put(4),))])
    assert check_watch(watch, WRITES) == []
    late = Watch(b"a", responses=[Response(3, created=True), Response(5, (put(5),))])
    assert [v.promise for v in check_watch(late, WRITES)] == ["reliable"]


def test_a_resumed_watch_may_not_repeat_nor_leave_out() -> None:
    first = Watch(
        b"a", start=2, responses=[Response(1, created=True), Response(3, (put(2), put(3)))]
    )
    again = Watch(b"a", start=3, resumes=first, responses=[Response(3, (put(3),))])
    assert {v.promise for v in check_watch(again, WRITES)} == {"resumable"}
    gap = Watch(b"a", start=5, resumes=first, responses=[Response(5, (put(5),))])
    assert {v.promise for v in check_watch(gap, WRITES)} == {"resumable"}


def test_a_notice_moves_the_start_of_the_next_watch() -> None:
    first = Watch(b"b", start=2, responses=[Response(1, created=True), Response(6)])
    assert first.next_start() == 7
    assert Watch(b"b", start=2).next_start() == 2


def test_fragments_of_a_response_are_one() -> None:
    writes = {2: (put(2, b"a"), put(2, b"b"))}
    parts = [Response(2, (put(2, b"a"),), fragment=True), Response(2, (put(2, b"b"),))]
    assert check_watch(Watch(b"a", b"c", 2, responses=parts), writes) == []
    parts[0] = replace(parts[0], fragment=False)
    found = check_watch(Watch(b"a", b"c", 2, responses=parts), writes)
    assert [v.promise for v in found] == ["atomic"]


def test_a_watch_that_was_ended_owes_nothing_more() -> None:
    ended = Watch(b"a", start=2, responses=[Response(0, canceled=True, compacted=5)])
    assert check_watch(ended, WRITES, until=7) == []


def test_what_was_not_asked_for_may_not_come() -> None:
    watch = Watch(b"a", start=2, puts=False, responses=[Response(2, (put(2),))])
    assert "not asked for" in str(check_watch(watch, WRITES)[0])
    early = Watch(b"a", start=4, responses=[Response(2, (put(3), put(4)))])
    assert "older than the start" in str(check_watch(early, WRITES)[0])


def test_watches_together_tell_what_happened() -> None:
    one = Watch(b"a", start=2, responses=[Response(3, (put(2), put(3)))])
    other = Watch(b"a", start=3, responses=[Response(5, (put(3), put(5)))])
    assert writes_of([one, other]) == {n: (put(n),) for n in (2, 3, 5)}
    assert gaps(writes_of([one, other])) == [(3, 5)]
