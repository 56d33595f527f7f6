"""Linearizable reads: which index is answered, and when."""

from __future__ import annotations

import pytest
from raftlab.driver import Driver, lone, network

from kvorum.raft import (
    ConfChange,
    ConfChangeType,
    Entry,
    Message,
    MsgType,
    ReadOnlyOption,
    StateType,
    reads,
)
from kvorum.raft.read_only import ReadOnly
from kvorum.raft.tracker import TrackedConfig
from kvorum.types import Index, MemberID

LEASE = {"check_quorum": True, "read_only_option": ReadOnlyOption.LEASE_BASED}


def answers(member: Driver) -> list[tuple[int, bytes]]:
    member.settle()
    return [(read.index, read.context) for read in member.reads]


@pytest.mark.parametrize("config", [{}, LEASE])
@pytest.mark.parametrize("asker", [1, 2])
def test_every_member_gets_the_leaders_commit_index(config, asker):
    net = network(3, **config).elect(1)
    net[1].propose(b"data")
    net.run()
    net[asker].node.read_index(b"who")
    net.run()
    assert answers(net[asker]) == [(net[1].committed, b"who")]


def test_a_lease_answers_without_a_message():
    leader = lone(1, (1, 2, 3), **LEASE).win().acknowledge(2, 3)
    leader.take()
    leader.node.read_index(b"r")
    assert leader.take() == []
    assert answers(leader) == [(leader.committed, b"r")]


def test_a_leader_that_is_cut_off_answers_nothing():
    net = network().elect(1)
    net.cut_off(1)
    net[1].node.read_index(b"r")
    net.beat(1)
    assert answers(net[1]) == []
    net.heal()
    net.beat(1)
    assert answers(net[1]) == [(net[1].committed, b"r")]


def test_one_round_confirms_all_reads_before_it():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    for context in (b"a", b"b", b"c"):
        leader.node.read_index(context)
    beats = [m for m in leader.take(MsgType.HEARTBEAT) if m.to == 2]
    leader.receive(MsgType.HEARTBEAT_RESP, 2, 1, context=beats[1].context)
    assert [context for _, context in answers(leader)] == [b"a", b"b"]
    leader.receive(MsgType.HEARTBEAT_RESP, 3, 1, context=beats[0].context)
    assert len(answers(leader)) == 2
    leader.receive(MsgType.HEARTBEAT_RESP, 3, 1, context=beats[2].context)
    assert [context for _, context in answers(leader)] == [b"a", b"b", b"c"]


def test_a_lost_round_is_made_good_by_the_next_heartbeat():
    net = network().elect(1)
    net.lose(MsgType.HEARTBEAT)
    net[1].node.read_index(b"r")
    net.run()
    assert answers(net[1]) == []
    net.heal()
    net.beat(1)
    assert len(answers(net[1])) == 1


def test_an_answer_without_or_with_an_unknown_number_confirms_nothing():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.node.read_index(b"r")
    for context in (b"", b"short", (99).to_bytes(8, "little")):
        leader.receive(MsgType.HEARTBEAT_RESP, 2, 1, context=context)
    assert answers(leader) == []


def test_reads_before_the_first_commit_of_the_term_wait_for_it():
    leader = lone(1, (1, 2, 3), 1, 1, term=1).win()
    leader.node.read_index(b"r")
    assert leader.take(MsgType.HEARTBEAT) == []
    leader.acknowledge(2)
    beats = leader.take(MsgType.HEARTBEAT)
    leader.receive(MsgType.HEARTBEAT_RESP, 2, leader.term, context=beats[0].context)
    assert answers(leader) == [(leader.last, b"r")]


def test_a_sole_voter_waits_for_the_first_commit_of_its_term_too():
    # All entries were committed and served before the crash; the commit index on disk is older.
    member = lone(1, (1,), 1, 1, 1, term=1, commit=2)
    member.node.campaign()
    rd = member.node.ready()
    member._persist(rd.hard_state, rd.entries, rd.snapshot)
    member.node.advance()
    assert (member.state, member.committed) == (StateType.LEADER, 2)
    member.node.read_index(b"r")
    assert member.raft.read_states == []
    assert answers(member) == [(5, b"r")]


def test_a_sole_voter_answers_itself_and_learners_at_once():
    leader = lone(1, (1,), learners=(2,)).win()
    leader.take()
    leader.node.read_index(b"own")
    request = Message(MsgType.READ_INDEX, MemberID(1), MemberID(2), entries=[Entry(data=b"2")])
    leader.node.step(request)
    assert answers(leader) == [(leader.committed, b"own")]
    [answer] = leader.take(MsgType.READ_INDEX_RESP)
    assert (answer.to, answer.index, answer.entries[0].data) == (2, leader.committed, b"2")


def test_a_smaller_quorum_may_confirm_reads():
    leader = lone(1, (1, 2)).win().acknowledge(2)
    leader.node.propose_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, MemberID(2)))
    leader.settle()
    leader.node.read_index(b"r")
    assert answers(leader) == []
    leader.acknowledge(2)
    assert answers(leader) == [(leader.committed - 1, b"r")]


def test_a_smaller_quorum_may_bring_the_first_commit_of_the_term():
    leader = lone(1, (1, 2), 1, term=1).win()
    leader.node.read_index(b"r")
    leader.settle()
    leader.node.apply_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, MemberID(2)))
    assert answers(leader) == [(leader.last, b"r")]


def test_a_follower_without_a_leader_drops_the_request():
    follower = lone()
    follower.node.read_index(b"r")
    assert follower.take() == []


def test_a_malformed_answer_is_ignored():
    follower = lone()
    follower.receive(MsgType.HEARTBEAT, 2, 1)
    for entries in ([], [Entry(), Entry()]):
        follower.receive(MsgType.READ_INDEX_RESP, 2, 1, index=Index(3), entries=entries)
    assert answers(follower) == []


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.plain
def test_waiting_reads_are_bounded(monkeypatch, committed):
    monkeypatch.setattr(reads, "MAX_WAITING_READS", 3)
    leader = lone(1, (1, 2, 3), 1, term=1).win()
    if committed:
        leader.acknowledge(2, 3)
    for number in range(9):
        leader.node.read_index(b"%d" % number)
    assert len(leader.raft.read_only) + len(leader.raft.pending_reads) == 3


def test_reads_of_an_earlier_leadership_are_not_confirmed_by_a_later_one():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.node.read_index(b"old")
    context = leader.take(MsgType.HEARTBEAT)[0].context
    leader.receive(MsgType.HEARTBEAT, 2, 5).settle()
    leader.win().acknowledge(2, 3)
    leader.receive(MsgType.HEARTBEAT_RESP, 2, leader.term, context=context)
    assert answers(leader) == []


def test_acknowledgements_never_go_back():
    only = ReadOnly()
    config = TrackedConfig(voters=frozenset({MemberID(1)}))
    for _ in range(2):
        only.add(Message(MsgType.READ_INDEX), Index(1))
    newest = only.context()
    only.acknowledge(MemberID(1), newest)
    only.acknowledge(MemberID(1), (1).to_bytes(8, "little"))
    assert len(only.confirmed(config)) == 2
    assert (only.context(), len(only)) == (b"", 0)
