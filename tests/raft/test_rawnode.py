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
    ConfChangeSingle,
    ConfChangeType,
    ConfChangeV2,
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
    ReadOnlyOption,
    Snapshot,
    SnapshotMetadata,
    StateType,
    StepLocalMessage,
    StepPeerNotFound,
    is_local_target,
    membership,
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


def test_plain_entries_and_a_change_can_be_proposed_together():
    logged = Lines()
    leader = lone(1, (1, 2), logger=logged).win().acknowledge(2)
    context = b'it\'s "so"\n'
    entries = [
        membership.proposal(ConfChange(node_id=MemberID(3))),
        Entry(data=b"between"),
        membership.proposal(ConfChange(node_id=MemberID(4), context=context)),
    ]
    leader.node.propose(entries)
    leader.settle().acknowledge(2)
    assert leader.raft.tracker.config.voters == {1, 2, 3}
    assert leader.data() == [b"between"]
    assert logged.lines[-2] == (
        "1 ignoring conf change transition:ConfChangeTransitionAuto "
        'changes:{type:ConfChangeAddNode node_id:4} context:"it\'s \\"so\\"\\n" '
        "at config voters=(1 2): possible unapplied conf change at index 3 (applied to 2)"
    )


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, msg: str, /) -> None:
        self.lines.append(msg)

    debug = warn = error = info


def test_a_leader_without_voters_does_nothing():
    leader = lone(1, (1,)).win()
    tracker = leader.raft.tracker
    config = replace(tracker.config, voters=frozenset())
    assert membership.switch(leader.raft, (config, tracker.progress)).voters == ()
    assert leader.take() == []


def test_values_show_what_they_are():
    m = Message(MsgType.APP, MemberID(2), MemberID(1), Term(3), entries=[Entry(Term(3), Index(4))])
    assert repr(m) == "Message(1->2 MsgApp term=3, entries=[Entry(3/4 EntryNormal b'')])"
    assert m != Message(MsgType.APP)
    assert m != 1
    assert m.entries[0] != 1
    for unhashable in (m, m.entries[0]):
        with pytest.raises(TypeError):
            hash(unhashable)


def test_an_unchecked_change_is_appended_and_refused_when_it_is_applied():
    leader = lone(1, (1, 2), disable_conf_change_validation=True).win().acknowledge(2)
    leader.node.propose_conf_change(None)
    with pytest.raises(ConfChangeError, match="can't leave a non-joint config"):
        leader.settle().acknowledge(2)


def test_a_joint_configuration_is_not_left_while_leadership_is_handed_over():
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
    first, same, other = (
        lone(1, (1,), election_tick=1000, rng=Random(seed)).raft.randomized_election_timeout
        for seed in (1, 1, 2)
    )
    assert first == same != other
