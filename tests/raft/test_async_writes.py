"""Asynchronous storage writes: what is handed out when, and what each response sets free."""

from __future__ import annotations

import pytest
from raftlab.driver import BASE, Driver, ids, log_of, storage_with

from kvorum.raft import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    ConfState,
    Entry,
    InvariantViolation,
    MemoryStorage,
    Message,
    MsgType,
    Ready,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.types import Index, MemberID, Term

LAST = {"log_term": Term(1), "index": BASE}


class Async(Driver):
    """Work for the storage piles up until the test says that it is done."""

    def __init__(self, number: int, storage: MemoryStorage, **config: object) -> None:
        super().__init__(number, storage, async_storage_writes=True, **config)
        self.appends: list[Message] = []
        self.applies: list[Message] = []

    def _carry_out(self, rd: Ready) -> None:
        for m in rd.messages:
            if m.to == LOCAL_APPEND_THREAD:
                self.appends.append(m)
            elif m.to == LOCAL_APPLY_THREAD:
                self.applies.append(m)
            else:
                self.sent.append(m)

    def append_done(self) -> list[Message]:
        """The oldest write is durable; returns what may now leave for others."""
        m = self.appends.pop(0)
        self._persist(m.hard_state, m.entries, m.snapshot)
        return self._deliver(m)

    def apply_done(self) -> None:
        m = self.applies.pop(0)
        self._apply(m.entries)
        self._deliver(m)

    def _deliver(self, m: Message) -> list[Message]:
        for response in m.responses:
            if response.to == self.id:
                self.node.step(response)
        self.settle()
        return [response for response in m.responses if response.to != self.id]


def asynchronous(number: int, voters: tuple[int, ...], *terms: int, **config: object) -> Async:
    return Async(number, storage_with(ConfState(voters=ids(*voters)), *terms), **config)


def async_leader(*voters: int, **config: object) -> Async:
    leader = asynchronous(1, voters, **config)
    leader.node.campaign()
    leader.settle()
    leader.append_done()
    for voter in voters[1:]:
        leader.receive(MsgType.VOTE_RESP, voter, 1)
    leader.settle()
    leader.append_done()
    for voter in voters[1:]:
        leader.receive(MsgType.APP_RESP, voter, 1, index=leader.last)
    leader.settle()
    while leader.appends:
        leader.append_done()
    while leader.applies:
        leader.apply_done()
    assert leader.committed == leader.last == leader.node.basic_status().applied
    leader.sent.clear()
    return leader


def test_there_is_nothing_to_advance():
    with pytest.raises(InvariantViolation, match="Advance must not be called"):
        asynchronous(1, (1,)).node.advance()


def test_a_batch_through_a_sole_voter():
    leader = async_leader(1)
    leader.propose(b"a", b"b").settle()
    [write] = leader.appends
    assert (write.type, write.from_) == (MsgType.STORAGE_APPEND, 1)
    assert [e.data for e in write.entries] == [b"a", b"b"]
    assert write.hard_state.is_empty()
    assert [(m.type, m.to) for m in write.responses] == [
        (MsgType.APP_RESP, 1),
        (MsgType.STORAGE_APPEND_RESP, 1),
    ]
    assert leader.applies == []
    leader.append_done()
    [apply] = leader.applies
    assert (apply.type, apply.from_, apply.term) == (MsgType.STORAGE_APPLY, 1, 0)
    assert apply.entries == write.entries
    assert all(one is other for one, other in zip(apply.entries, write.entries, strict=True))
    # The new commit index goes to disk with whatever is written next; nobody waits for it.
    [commit] = leader.appends
    assert (commit.hard_state.commit, list(commit.responses)) == (4, [])
    assert leader.node.basic_status().applied == 2
    leader.apply_done()
    assert leader.node.basic_status().applied == 4


def test_writes_are_pipelined():
    leader = async_leader(1)
    for number in range(3):
        leader.propose(b"%d" % number).settle()
    assert [[e.data for e in m.entries] for m in leader.appends] == [[b"0"], [b"1"], [b"2"]]
    leader.append_done()
    assert leader.committed == 3
    leader.append_done()
    assert leader.committed == 4
    assert [[e.data for e in m.entries] for m in leader.applies] == [[b"0"], [b"1"]]


def test_appends_leave_before_the_leaders_own_write_is_done():
    leader = async_leader(1, 2)
    leader.propose(b"a").settle()
    assert [m.type for m in leader.take()] == [MsgType.APP]
    leader.receive(MsgType.APP_RESP, 2, 1, index=leader.last).settle()
    # A quorum of two needs the own disk too.
    assert leader.committed == 2
    leader.append_done()
    assert leader.committed == 3


def test_a_committed_entry_is_not_applied_before_it_is_durable_here():
    leader = async_leader(1, 2, 3)
    leader.propose(b"a").settle()
    for member in (2, 3):
        leader.receive(MsgType.APP_RESP, member, 1, index=leader.last)
    leader.settle()
    assert (leader.committed, leader.applies) == (3, [])
    leader.append_done()
    assert [e.data for e in leader.applies[0].entries] == [b"a"]


def test_a_follower_answers_when_its_write_is_done():
    follower = asynchronous(2, (1, 2, 3))
    follower.receive(MsgType.APP, 1, 1, entries=log_of(1, 1), **LAST).settle()
    assert follower.take() == []
    assert [(m.type, m.index) for m in follower.append_done()] == [(MsgType.APP_RESP, 3)]


def test_an_answer_without_a_write_of_its_own_waits_for_those_before_it():
    follower = asynchronous(2, (1, 2, 3))
    follower.receive(MsgType.APP, 1, 1, entries=log_of(1), **LAST).settle()
    follower.receive(MsgType.APP, 1, 1, entries=log_of(1), **LAST).settle()
    assert len(follower.appends) == 2
    assert list(follower.appends[1].entries) == []
    follower.append_done()
    assert [m.index for m in follower.append_done()] == [2]


def test_the_same_entries_written_again_do_not_count_as_durable_too_early():
    """Place 2 of the log is written as term 1, as term 2, and as term 1's again.

    When the first write is done, the second one is still to come, and would be read back from
    the storage if the unstable entry were let go of now.
    """
    follower = asynchronous(2, (1, 2, 3, 4, 5))
    own = [Entry(Term(1), Index(2), data=b"a")]
    other = [Entry(Term(2), Index(2), data=b"b")]
    follower.receive(MsgType.APP, 1, 1, entries=own, **LAST).settle()
    follower.receive(MsgType.APP, 3, 2, entries=other, **LAST).settle()
    follower.receive(MsgType.APP, 1, 3, entries=own, **LAST).settle()
    assert [m.entries[0].data for m in follower.appends] == [b"a", b"b", b"a"]
    log = follower.raft.log
    for stored in (b"a", b"b"):
        follower.append_done()
        assert follower.storage.entries(Index(2), Index(3), 0)[0].data == stored
        assert log.entries_from(Index(2), 0)[0].data == b"a"
        assert log.unstable.offset == 2
    follower.append_done()
    assert log.unstable.offset == 3
    assert log.entries_from(Index(2), 0)[0].data == b"a"


def test_a_word_of_an_old_term_is_made_good_by_the_next_write():
    follower = asynchronous(2, (1, 2, 3))
    follower.receive(MsgType.APP, 1, 1, entries=log_of(1), **LAST).settle()
    follower.receive(MsgType.HEARTBEAT, 3, 2).settle()
    first, second = follower.appends
    assert (second.hard_state.term, list(second.entries)) == (2, [])
    assert (second.responses[-1].index, second.responses[-1].log_term) == (2, 1)
    follower.append_done()
    assert follower.raft.log.unstable.offset == 2
    follower.append_done()
    assert follower.raft.log.unstable.offset == 3
    assert first.responses[-1].term == 1


@pytest.mark.parametrize("later_term", [False, True])
def test_a_snapshot_is_taken_over_when_it_is_written(later_term):
    follower = asynchronous(2, (1, 2, 3))
    meta = SnapshotMetadata(ConfState(voters=ids(1, 2, 3)), Index(9), Term(1))
    follower.receive(MsgType.SNAP, 1, 1, snapshot=Snapshot(b"s", meta)).settle()
    if later_term:
        follower.receive(MsgType.HEARTBEAT, 3, 2).settle()
    assert follower.appends[0].snapshot == Snapshot(b"s", meta)
    assert follower.raft.log.unstable.snapshot is not None
    assert [m.index for m in follower.append_done()] == [9]
    assert follower.raft.log.unstable.snapshot is None
    assert follower.node.basic_status().applied == 9


def test_unapplied_bytes_are_bounded_over_several_readies():
    leader = async_leader(1, max_committed_size_per_ready=20, max_size_per_msg=1 << 20)
    for _ in range(4):
        leader.propose(b"x" * 15).settle()
        while leader.appends:
            leader.append_done()
    assert [len(m.entries) for m in leader.applies] == [1]
    leader.apply_done()
    assert [len(m.entries) for m in leader.applies] == [1]
    while leader.applies:
        leader.apply_done()
    assert len(leader.data()) == 4


def test_an_empty_apply_response_says_nothing():
    leader = async_leader(1)
    m = Message(MsgType.STORAGE_APPLY_RESP, MemberID(1), LOCAL_APPLY_THREAD)
    leader.node.step(m)
    assert leader.node.basic_status().applied == 2
