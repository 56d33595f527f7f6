"""The seam to the server: configuration, Ready, advance, storage messages, restart."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from raftlab.driver import BASE, Driver, ids, log_of, lone, network, storage_with

from kvorum.raft import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    ConfChange,
    ConfChangeError,
    ConfChangeType,
    Config,
    ConfState,
    Entry,
    HardState,
    InvariantViolation,
    MemoryStorage,
    Message,
    MsgType,
    Peer,
    RaftError,
    RawNode,
    ReadOnlyOption,
    Ready,
    Snapshot,
    SnapshotMetadata,
    StateType,
    StepLocalMessage,
    StepPeerNotFound,
    is_local_target,
)
from kvorum.raft.types import LOCAL_MSGS, RESPONSE_MSGS
from kvorum.types import Index, MemberID, Term

LAST = {"log_term": Term(1), "index": BASE}


# --- configuration


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"id": 0}, "cannot use none as id"),
        ({"id": LOCAL_APPLY_THREAD}, "cannot use local target as id"),
        ({"heartbeat_tick": 0}, "heartbeat tick must be greater than 0"),
        ({"election_tick": 1}, "election tick must be greater than heartbeat tick"),
        ({"max_inflight_msgs": 0}, "max inflight messages must be greater than 0"),
        ({"max_inflight_bytes": 5}, "max inflight bytes must be >= max message size"),
        ({"read_only_option": ReadOnlyOption.LEASE_BASED}, "CheckQuorum must be enabled"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, complaint):
    good = Config(id=MemberID(1), storage=MemoryStorage())
    with pytest.raises(ValueError, match=complaint):
        replace(good, **wrong)


# --- Ready, with advance


def test_a_new_member_has_nothing_to_do():
    node = lone().node
    assert not node.has_ready()
    rd = node.ready()
    assert (rd.soft_state, rd.hard_state, rd.snapshot, rd.must_sync) == (
        None,
        HardState(),
        None,
        False,
    )
    assert rd.entries == rd.committed_entries == rd.messages == rd.read_states == []


def test_what_changes_makes_a_ready():
    member = lone()
    member.receive(MsgType.HEARTBEAT, 2, 1)
    rd = member.node.ready()
    assert rd.soft_state == (2, StateType.FOLLOWER)
    assert rd.hard_state == HardState(Term(1), MemberID(0), BASE)
    assert rd.must_sync
    member.node.advance()
    assert not member.node.has_ready()


@pytest.mark.parametrize("change", ["read state", "snapshot", "hard state", "role"])
def test_each_change_alone_makes_a_ready(change):
    member = lone()
    raft = member.raft
    if change == "read state":
        member.receive(MsgType.READ_INDEX_RESP, 2, entries=[Entry(data=b"x")])
    elif change == "snapshot":
        meta = SnapshotMetadata(ConfState(voters=ids(1)), Index(9), Term(1))
        raft.log.unstable.restore(Snapshot(b"s", meta))
    elif change == "hard state":
        raft.vote = MemberID(3)
    else:
        raft.state = StateType.PRE_CANDIDATE
    assert member.node.has_ready()


def test_a_commit_index_alone_needs_no_sync():
    leader = lone(1, (1, 2)).win()
    leader.settle()
    leader.receive(MsgType.APP_RESP, 2, 1, index=leader.last)
    rd = leader.node.ready()
    assert (rd.hard_state.commit, rd.must_sync) == (2, False)


def test_messages_that_promise_something_come_with_what_they_promise():
    follower = lone(2)
    follower.receive(MsgType.APP, 1, 1, entries=log_of(1), **LAST)
    rd = follower.node.ready()
    assert [e.index for e in rd.entries] == [2]
    assert [m.type for m in rd.messages] == [MsgType.APP_RESP]


def test_the_next_ready_waits_for_advance():
    leader = lone(1, (1,))
    leader.node.campaign()
    leader.node.ready()
    with pytest.raises(InvariantViolation, match="two accepted Ready"):
        leader.node.ready()


def test_a_sole_voter_commits_with_advance():
    member = lone(1, (1,)).win()
    member.propose(b"a", b"b").settle()
    assert (member.committed, member.data()) == (4, [b"a", b"b"])
    # Committed when written, told with the Ready after.
    written = next(rd for rd in member.readies if rd.entries and rd.entries[-1].data == b"b")
    assert [e.data for e in written.committed_entries] == []


def test_a_sole_voter_steps_down_when_it_removes_itself_and_nobody_minds():
    member = lone(1, (1, 2), step_down_on_removal=True).win().acknowledge(2)
    member.node.propose_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, MemberID(1)))
    member.settle().acknowledge(2)
    assert member.state is StateType.FOLLOWER
    assert not member.raft.promotable()


# --- which messages may come from outside


@pytest.mark.parametrize("kind", sorted(LOCAL_MSGS))
def test_nobody_else_may_send_local_messages(kind):
    with pytest.raises(StepLocalMessage, match="cannot step raft local message"):
        lone().receive(kind, 2, 1)


@pytest.mark.parametrize("kind", sorted(RESPONSE_MSGS - LOCAL_MSGS))
def test_strangers_may_not_answer(kind):
    with pytest.raises(StepPeerNotFound, match="peer not found"):
        lone().receive(kind, 9, 1)


def test_local_targets():
    assert is_local_target(LOCAL_APPEND_THREAD)
    assert is_local_target(LOCAL_APPLY_THREAD)
    assert not is_local_target(MemberID(LOCAL_APPLY_THREAD - 1))


# --- asynchronous storage writes


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


# --- the core's own rules for sending


def test_messages_keep_the_rules_of_terms():
    raft = lone(1, (1, 2), term=3).raft
    with pytest.raises(InvariantViolation, match="term should be set when sending MsgVote"):
        raft.send(Message(MsgType.VOTE, MemberID(2)))
    with pytest.raises(InvariantViolation, match="term should not be set when sending MsgApp"):
        raft.send(Message(MsgType.APP, MemberID(2), term=Term(2)))
    with pytest.raises(InvariantViolation, match="should not be self-addressed"):
        raft.send(Message(MsgType.APP, MemberID(1)))


# --- starting


def test_bootstrap_of_a_new_cluster():
    members = {}
    for number in (1, 2, 3):
        member = members[number] = Driver(number, MemoryStorage(), applied=0)
        member.node.bootstrap([Peer(MemberID(n), b"m%d" % n) for n in (1, 2, 3)])
        assert member.node.has_ready()
    first = members[1].node.ready()
    assert first.hard_state == HardState(Term(1), MemberID(0), Index(3))
    assert [e.index for e in first.entries] == [1, 2, 3]
    assert first.entries == first.committed_entries
    members[1]._persist(first.hard_state, first.entries, None)
    members[1]._apply(first.committed_entries)
    members[1].node.advance()
    net = network(3)
    net.members = {member.id: member for member in members.values()}
    net.elect(1)
    net[2].propose(b"data")
    net.run()
    assert [net[n].data() for n in (1, 2, 3)] == [[b"data"]] * 3


def test_bootstrap_wants_peers_and_an_empty_log():
    node = Driver(1, MemoryStorage(), applied=0).node
    with pytest.raises(ValueError, match="at least one peer"):
        node.bootstrap([])
    with pytest.raises(RaftError, match="nonempty Storage"):
        lone().node.bootstrap([Peer(MemberID(1))])


def test_a_member_restarts_where_it_was():
    net = network().elect(1)
    net[1].propose(b"a", b"b")
    net.run()
    old = net[2]
    again = Driver(2, old.storage, applied=3)
    status = again.node.basic_status()
    assert status.hard_state == old.node.basic_status().hard_state
    assert status.applied == 3
    assert [e.data for e in again.settle().applied] == [b"b"]


@pytest.mark.parametrize("commit", [1, 9])
def test_a_commit_index_outside_the_log_is_a_corrupted_disk(commit):
    storage = storage_with(ConfState(voters=ids(1)), 1, base=5)
    storage.set_hard_state(HardState(Term(1), MemberID(0), Index(commit)))
    with pytest.raises(InvariantViolation, match=r"state.commit \d is out of range \[5, 6\]"):
        Driver(1, storage, applied=5)


def test_a_restored_configuration_is_compared_with_the_stored_one():
    storage = storage_with(ConfState(voters=ids(1, 2), learners=ids(2)))
    with pytest.raises(InvariantViolation, match="not equivalent"):
        Driver(1, storage)


# --- status


def test_status_is_a_copy():
    leader = lone(1, (1, 2)).win()
    status = leader.node.status()
    assert status.basic.soft_state == (1, StateType.LEADER)
    assert set(status.progress) == {1, 2}
    status.progress[MemberID(2)].match = Index(99)
    status.progress[MemberID(2)].inflights.clear()
    assert leader.raft.tracker.progress[MemberID(2)].match == 0
    assert lone().node.status().progress == {}


# --- membership through the node


def test_a_change_that_does_not_fit_is_replaced_and_says_so_to_its_proposer():
    leader = lone(1, (1, 2)).win().acknowledge(2)
    marker = object()
    leader.node.propose_conf_change(None, marker)
    leader.settle().acknowledge(2)
    refused = leader.applied[-1]
    assert (refused.type, refused.data) == (0, b"")
    assert refused.local is marker


def test_an_unchecked_change_is_appended_and_refused_when_it_is_applied():
    leader = lone(1, (1, 2), disable_conf_change_validation=True).win().acknowledge(2)
    leader.node.propose_conf_change(None)
    with pytest.raises(ConfChangeError, match="can't leave a non-joint config"):
        leader.settle().acknowledge(2)


def test_a_joint_configuration_is_not_left_while_leadership_is_handed_over():
    from kvorum.raft import ConfChangeSingle, ConfChangeV2

    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    changes = tuple(
        ConfChangeSingle(kind, MemberID(member))
        for kind, member in ((ConfChangeType.ADD_NODE, 4), (ConfChangeType.REMOVE_NODE, 3))
    )
    leader.node.propose_conf_change(ConfChangeV2(changes=changes))
    leader.settle()
    leader.raft.lead_transferee = MemberID(2)
    leader.acknowledge(2, 3, index=leader.last)
    assert leader.raft.tracker.config.joint()
    assert leader.last == 3
    leader.tick(10)
    leader.raft.lead_transferee = MemberID(0)
    leader.propose(b"next").settle().acknowledge(2, 3)
    leader.acknowledge(2, 3, 4)
    assert str(leader.raft.tracker.config) == "voters=(1 2 4)"


def test_a_removed_transferee_ends_the_transfer():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.raft.lead_transferee = MemberID(3)
    leader.node.apply_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, MemberID(3)))
    assert leader.raft.lead_transferee == 0


def test_a_smaller_quorum_commits_more():
    leader = lone(1, (1, 2, 3, 4)).win().acknowledge(2, 3)
    leader.propose(b"a").settle().acknowledge(2)
    assert leader.committed == 2
    leader.node.apply_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, MemberID(4)))
    assert leader.committed == 3


def test_the_random_source_is_injected():
    timeouts = [
        [
            RawNode(
                Config(
                    id=MemberID(1),
                    storage=storage_with(ConfState(voters=ids(1))),
                    election_tick=1000,
                    rng=Random(seed),
                )
            ).raft.randomized_election_timeout
            for seed in (1, 1, 2)
        ]
    ][0]
    assert timeouts[0] == timeouts[1] != timeouts[2]
