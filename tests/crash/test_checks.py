"""The checkers find what they are for: one planted fault of each sort in a sound history."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from crash import checks
from crash.checks import LeaseView, Model
from crash.harness import CrashRun
from crash.history import Event, Grant, Op, Outcome, Pair, Read, Recorder, Watched
from support.member import MemberFactory
from support.rpc import PUT, Client


@dataclass
class Story:
    """A small sound history: what clients did, and the log that a good server made of it."""

    events: list[Event]
    ops: list[Op]
    reads: list[Read]
    watch: Watched
    live: dict[bytes, Pair]
    grants: list[Grant]
    leases: dict[int, LeaseView]

    def violations(self) -> list[str]:
        model = Model()
        wrong = checks.replay(model, self.events)
        wrong += checks.check_ops(model, self.ops, self.events)
        wrong += checks.check_order(self.ops)
        wrong += checks.check_reads(model, self.reads, self.ops)
        wrong += checks.check_watch(self.watch, self.events)
        wrong += checks.check_state(model, self.live, 7)
        revokes = [op for op in self.ops if op.revokes]
        return wrong + checks.check_leases(model, self.grants, revokes, self.leases)


def acked(client: str, ticks: tuple[int, int], revision: int, **puts: bytes) -> Op:
    keys = {key.encode(): value for key, value in puts.items()}
    return Op(client, keys, (), ticks[0], 0, 0, ticks[1], Outcome.ACKED, revision)


def sound_story() -> Story:
    """Puts, a transaction with a deletion, a leased put, an unanswered put, a revoke."""
    events = [
        Event(2, b"a", b"a1", 2, 1),
        Event(3, b"b", b"b1", 3, 1),
        Event(4, b"a", None),
        Event(4, b"b", b"b2", 3, 2),
        Event(4, b"c", b"c1", 4, 1),
        Event(5, b"l", b"l1", 5, 1, 77),
        Event(6, b"d", b"d1", 6, 1),
        Event(7, b"l", None),
    ]
    ops = [
        acked("one", (1, 2), 2, a=b"a1"),
        acked("one", (3, 4), 3, b=b"b1"),
        replace(acked("one", (5, 6), 4, b=b"b2", c=b"c1"), deletes=(b"a",)),
        replace(acked("two", (5, 8), 5, l=b"l1"), lease=77),
        replace(acked("three", (7, 12), 0, d=b"d1"), outcome=Outcome.UNKNOWN),
        replace(acked("four", (7, 12), 0, x=b"x1"), outcome=Outcome.UNKNOWN),
        replace(acked("two", (9, 10), 7), revokes=77),
    ]
    pair = Pair(b"b2", 3, 4, 2, 0)
    live = {b"b": pair, b"c": Pair(b"c1", 4, 4, 1, 0), b"d": Pair(b"d1", 6, 6, 1, 0)}
    return Story(
        events,
        ops,
        [Read(b"b", 7, 9, 5, pair), Read(b"a", 7, 9, 4, None)],
        Watched("w", b"b", b"c\0", 8, [events[1], events[3], events[4]]),
        live,
        [Grant(77, 100, Outcome.ACKED), Grant(88, 100, Outcome.ACKED)],
        {88: LeaseView(100, 99, set())},
    )


def test_a_sound_history_passes() -> None:
    assert sound_story().violations() == []


def lose_an_acknowledged_put(story: Story) -> None:
    del story.events[0]


def lose_half_a_txn(story: Story) -> None:
    story.events.remove(Event(4, b"c", b"c1", 4, 1))


def lose_the_deletion_of_a_txn(story: Story) -> None:
    story.events.remove(Event(4, b"a", None))


def keep_half_an_unanswered_txn(story: Story) -> None:
    story.ops[4].puts = {b"d": b"d1", b"e": b"e1"}


def write_another_value(story: Story) -> None:
    story.events[1] = Event(3, b"b", b"other", 3, 1)


def skip_a_revision(story: Story) -> None:
    story.events[6:] = [event._replace(revision=event.revision + 1) for event in story.events[6:]]


def invent_a_change(story: Story) -> None:
    story.events.append(Event(8, b"ghost", b"boo", 8, 1))


def apply_twice(story: Story) -> None:
    story.events.append(Event(8, b"d", b"d1", 6, 2))


def carry_out_what_was_refused(story: Story) -> None:
    story.ops[4].outcome = Outcome.REFUSED


def turn_two_writes_round(story: Story) -> None:
    one, two = story.ops[0], story.ops[1]
    one.invoked, one.returned, two.invoked, two.returned = 3, 4, 1, 2


def count_a_version_wrong(story: Story) -> None:
    story.events[3] = Event(4, b"b", b"b2", 3, 3)


def create_again(story: Story) -> None:
    story.events[3] = Event(4, b"b", b"b2", 4, 1)


def drop_the_lease_of_a_key(story: Story) -> None:
    story.events[5] = Event(5, b"l", b"l1", 5, 1, 0)


def read_too_old(story: Story) -> None:
    story.reads[0] = Read(b"b", 9, 10, 3, Pair(b"b1", 3, 3, 1, 0))


def read_what_never_was(story: Story) -> None:
    story.reads[0].pair = Pair(b"dirty", 3, 4, 2, 0)


def miss_an_event(story: Story) -> None:
    del story.watch.events[1]


def see_an_event_twice(story: Story) -> None:
    story.watch.events.insert(1, story.watch.events[1])


def see_events_swapped(story: Story) -> None:
    events = story.watch.events
    events[0], events[1] = events[1], events[0]


def see_an_event_that_was_lost(story: Story) -> None:
    story.watch.events.append(Event(8, b"b", b"gone", 3, 3))


def show_another_state(story: Story) -> None:
    story.live[b"b"] = Pair(b"b1", 3, 3, 1, 0)


def forget_a_key(story: Story) -> None:
    del story.live[b"d"]


def forget_a_lease(story: Story) -> None:
    story.leases.clear()


def keep_a_revoked_lease(story: Story) -> None:
    story.leases[77] = LeaseView(100, 99, set())


def shorten_a_lease(story: Story) -> None:
    story.leases[88].granted = 50


def undo_a_revoke(story: Story) -> None:
    del story.events[7]


FAULTS = [
    lose_an_acknowledged_put,
    lose_half_a_txn,
    lose_the_deletion_of_a_txn,
    keep_half_an_unanswered_txn,
    write_another_value,
    skip_a_revision,
    invent_a_change,
    apply_twice,
    carry_out_what_was_refused,
    turn_two_writes_round,
    count_a_version_wrong,
    create_again,
    drop_the_lease_of_a_key,
    read_too_old,
    read_what_never_was,
    miss_an_event,
    see_an_event_twice,
    see_events_swapped,
    see_an_event_that_was_lost,
    show_another_state,
    forget_a_key,
    forget_a_lease,
    keep_a_revoked_lease,
    shorten_a_lease,
    undo_a_revoke,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found(fault: Callable[[Story], None]) -> None:
    story = sound_story()
    fault(story)
    assert story.violations()


def test_changed_history_is_found() -> None:
    known = {2: [Event(2, b"a", b"1", 2, 1)], 3: [Event(3, b"a", b"2", 2, 2)]}
    kept = [Event(3, b"a", b"2", 2, 2)]
    assert checks.check_unchanged(known, kept, 2) == []
    assert checks.check_unchanged(known, kept, 1)
    assert checks.check_unchanged(known, [Event(3, b"a", b"3", 2, 2)], 2)


def test_a_server_that_forgets_is_found(members: MemberFactory, kvorum: Path) -> None:
    """A real run, with an older copy of its folder put back after the kill."""
    member = members(kvorum, flags=["--log-level=warn"])
    run = CrashRun(member, 1)
    run.cycle(run.kill)
    member.stop()
    older = member.folder / "older"
    shutil.copytree(member.data_dir, older)
    member.start()

    def kill_and_forget(epoch: object) -> None:
        run.kill(epoch)  # type: ignore[arg-type]
        shutil.rmtree(member.data_dir)
        shutil.copytree(older, member.data_dir)

    with pytest.raises(AssertionError, match="lost: "):
        run.cycle(kill_and_forget)


def test_a_stranger_is_found(members: MemberFactory, kvorum: Path) -> None:
    """A real run, with one write that no recorded client made."""
    run = CrashRun(members(kvorum, flags=["--log-level=warn"]).start(), 2)
    with Client(run.member.endpoint) as client:
        client.call(PUT, key=b"stranger", value=b"1")
    with pytest.raises(AssertionError, match="nobody wrote"):
        run.verify(Recorder())
