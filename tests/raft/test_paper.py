"""One test for each claim of the Raft paper; figure 2 unless a section is named."""

from __future__ import annotations

import pytest
from raftlab.driver import BASE, log_of, lone, network

from kvorum.raft import ConfChange, ConfChangeType, MsgType, ProposalDropped, StateType
from kvorum.types import Index, MemberID, Term

FOLLOWER, CANDIDATE, LEADER = StateType.FOLLOWER, StateType.CANDIDATE, StateType.LEADER


def in_state(state: StateType):
    member = lone()
    if state is CANDIDATE:
        member.node.campaign()
        member.settle()
    elif state is LEADER:
        member.win()
    member.take()
    assert member.state is state
    return member


# --- 5.1 Raft basics: terms


@pytest.mark.parametrize("state", [FOLLOWER, CANDIDATE, LEADER])
def test_5_1_a_larger_term_makes_everybody_a_follower_in_it(state):
    member = in_state(state)
    member.receive(MsgType.APP, 2, member.term + 5, log_term=Term(1), index=BASE)
    assert (member.state, member.lead) == (FOLLOWER, 2)
    assert member.settle().storage.initial_state()[0].term == member.term


@pytest.mark.parametrize("state", [FOLLOWER, CANDIDATE, LEADER])
def test_5_1_a_message_with_a_stale_term_is_rejected(state):
    member = in_state(state)
    member.receive(MsgType.VOTE, 2, member.term + 5, log_term=Term(9), index=Index(9)).take()
    before = member.terms()
    member.receive(MsgType.APP, 3, member.term - 1, log_term=Term(1), index=BASE, entries=log_of(1))
    assert member.take() == []
    assert (member.state, member.lead, member.terms()) == (FOLLOWER, 0, before)


# --- 5.2 Leader election


def test_5_2_a_member_starts_as_a_follower():
    assert lone().state is FOLLOWER


def test_5_2_a_leader_sends_heartbeats_to_all_followers():
    leader = lone(1, (1, 2, 3), heartbeat_tick=1).win().acknowledge(2, 3)
    leader.take()
    beats = leader.tick().take(MsgType.HEARTBEAT)
    assert [(m.to, m.term) for m in beats] == [(2, leader.term), (3, leader.term)]


def test_5_2_a_follower_stays_one_while_it_hears_a_leader():
    follower = lone(1, (1, 2, 3), election_tick=10)
    for _ in range(50):
        follower.receive(MsgType.HEARTBEAT, 2, 1).tick(9)
    assert follower.state is FOLLOWER


def test_5_2_an_election_time_without_a_leader_starts_an_election():
    follower = lone(1, (1, 2, 3), 1, 2, term=2, election_tick=10).tick(19)
    requests = follower.take(MsgType.VOTE)
    assert (follower.state, follower.term, follower.raft.vote) == (CANDIDATE, 3, 1)
    assert [(m.to, m.term, m.log_term, m.index) for m in requests] == [(2, 3, 2, 3), (3, 3, 2, 3)]


@pytest.mark.parametrize(
    ("size", "granted", "refused", "state"),
    [
        (1, [], [], LEADER),
        (3, [2], [], LEADER),
        (3, [2, 3], [], LEADER),
        (5, [2, 3], [], LEADER),
        (5, [2, 3, 4], [], LEADER),
        (3, [], [2, 3], FOLLOWER),
        (5, [], [2, 3, 4, 5], FOLLOWER),
        (5, [2], [3, 4, 5], FOLLOWER),
        (3, [], [], CANDIDATE),
        (5, [2], [3, 4], CANDIDATE),
        (5, [], [2, 3], CANDIDATE),
    ],
)
def test_5_2_an_election_is_won_by_a_majority_in_one_round(size, granted, refused, state):
    member = lone(1, tuple(range(1, size + 1)))
    member.node.campaign()
    member.settle()
    for voter in granted:
        member.receive(MsgType.VOTE_RESP, voter, 1)
    for voter in refused:
        member.receive(MsgType.VOTE_RESP, voter, 1, reject=True)
    assert (member.state, member.term) == (state, 1)


def test_5_2_a_repeated_vote_counts_once():
    member = lone(1, (1, 2, 3, 4, 5))
    member.node.campaign()
    member.settle()
    for _ in range(3):
        member.receive(MsgType.VOTE_RESP, 2, 1)
    assert member.state is CANDIDATE


@pytest.mark.parametrize(
    ("vote", "asker", "refused"),
    [(0, 2, False), (0, 3, False), (2, 2, False), (3, 3, False), (2, 3, True), (3, 2, True)],
)
def test_5_2_a_follower_votes_once_a_term_first_come_first_served(vote, asker, refused):
    follower = lone(1, (1, 2, 3), term=1, vote=vote)
    follower.receive(MsgType.VOTE, asker, 1, log_term=Term(1), index=BASE)
    [answer] = follower.take()
    assert (answer.type, answer.to, answer.term) == (MsgType.VOTE_RESP, asker, 1)
    assert answer.reject is refused


def test_5_2_a_vote_is_durable_before_it_is_sent():
    follower = lone(1, (1, 2, 3))
    follower.receive(MsgType.VOTE, 2, 1, log_term=Term(1), index=BASE)
    rd = follower.node.ready()
    assert (rd.hard_state.vote, rd.must_sync) == (2, True)
    assert [m.type for m in rd.messages] == [MsgType.VOTE_RESP]


@pytest.mark.parametrize("term", [1, 2])
def test_5_2_a_candidate_yields_to_a_leader_of_its_term_or_later(term):
    candidate = in_state(CANDIDATE)
    candidate.receive(MsgType.APP, 2, term, log_term=Term(1), index=BASE)
    assert (candidate.state, candidate.term, candidate.lead) == (FOLLOWER, term, 2)


def test_5_2_a_candidate_without_majority_starts_another_election():
    candidate = in_state(CANDIDATE)
    candidate.tick(2 * candidate.config.election_tick)
    assert [m.term for m in candidate.take(MsgType.VOTE)] == [2, 2]


@pytest.mark.parametrize("state", [FOLLOWER, CANDIDATE])
def test_5_2_election_timeouts_are_spread_over_one_to_two_times(state):
    timeouts = set()
    for seed in range(200):
        member = lone(seed + 1, (seed + 1, 1001, 1002), election_tick=10)
        if state is CANDIDATE:
            member.node.campaign()
        timeouts.add(member.raft.randomized_election_timeout)
    assert timeouts == set(range(10, 20))


def test_5_2_few_members_time_out_together():
    members = [lone(n, (1, 2, 3, 4, 5)) for n in range(1, 6)]
    timeouts = [member.raft.randomized_election_timeout for member in members]
    assert len(set(timeouts)) > 1


# --- 5.3 Log replication


def test_5_3_a_leader_appends_a_proposal_and_sends_it_to_everybody():
    leader = in_state(LEADER).acknowledge(2, 3)
    leader.take()
    last = leader.last
    appends = leader.propose(b"data").take(MsgType.APP)
    assert leader.last == last + 1
    assert [(m.to, m.index, m.log_term) for m in appends] == [(2, last, 1), (3, last, 1)]
    assert all([e.data for e in m.entries] == [b"data"] for m in appends)


def test_5_3_an_entry_commits_when_a_majority_has_it_and_is_then_applied():
    leader = in_state(LEADER).acknowledge(2, 3)
    leader.propose(b"data").take()
    assert leader.data() == []
    leader.acknowledge(2)
    assert (leader.committed, leader.data()) == (leader.last, [b"data"])
    assert {m.commit for m in leader.take(MsgType.APP) if not m.entries} == {leader.last}


@pytest.mark.parametrize(
    ("size", "acks", "commits"),
    [
        (1, [], True),
        (3, [], False),
        (3, [2], True),
        (3, [2, 3], True),
        (5, [], False),
        (5, [2], False),
        (5, [2, 3], True),
        (5, [2, 3, 4, 5], True),
    ],
)
def test_5_3_what_counts_is_a_majority_of_all(size, acks, commits):
    leader = lone(1, tuple(range(1, size + 1))).win()
    leader.propose(b"data").settle().acknowledge(*acks)
    assert (leader.committed == leader.last) is commits


def test_5_3_committing_an_entry_commits_all_before_it():
    leader = lone(1, (1, 2, 3), 1, 1, 1, term=1).win().acknowledge(2)
    assert leader.committed == leader.last
    assert [e.index for e in leader.applied] == [2, 3, 4, 5]


def test_5_3_a_follower_applies_what_it_learns_is_committed_in_log_order():
    follower = lone(1, (1, 2, 3))
    follower.receive(
        MsgType.APP,
        2,
        1,
        log_term=Term(1),
        index=BASE,
        entries=log_of(1, 1),
        commit=Index(BASE + 1),
    )
    assert [e.index for e in follower.settle().applied] == [2]
    follower.receive(MsgType.HEARTBEAT, 2, 1, commit=Index(BASE + 2))
    assert [e.index for e in follower.settle().applied] == [2, 3]


@pytest.mark.parametrize(
    ("prev_term", "prev_index", "refused", "hint"),
    [
        (1, 1, False, 0),
        (1, 2, False, 0),
        (2, 3, False, 0),
        (1, 3, True, 2),
        (3, 3, True, 3),
        (2, 4, True, 3),
    ],
)
def test_5_3_a_follower_refuses_entries_after_one_it_does_not_have(
    prev_term, prev_index, refused, hint
):
    follower = lone(1, (1, 2, 3), 1, 2, term=2)
    follower.receive(MsgType.APP, 2, 3, log_term=Term(prev_term), index=Index(prev_index))
    [answer] = follower.take()
    assert (answer.type, answer.reject) == (MsgType.APP_RESP, refused)
    assert answer.index == prev_index
    assert answer.reject_hint == hint


@pytest.mark.parametrize(
    ("prev", "sent", "log", "fresh"),
    [
        ((2, 3), [(3, 4)], [1, 2, 3], [4]),
        ((1, 2), [(3, 3), (4, 4)], [1, 3, 4], [3, 4]),
        ((1, 1), [(1, 2)], [1, 2], []),
        ((1, 1), [(3, 2)], [3], [2]),
        ((1, 2), [(2, 3)], [1, 2], []),
    ],
)
def test_5_3_a_follower_replaces_what_conflicts_and_keeps_what_agrees(prev, sent, log, fresh):
    follower = lone(1, (1, 2, 3), 1, 2, term=2)
    entries = [log_of(term, after=index - 1)[0] for term, index in sent]
    follower.receive(
        MsgType.APP, 2, 4, log_term=Term(prev[0]), index=Index(prev[1]), entries=entries
    )
    follower.settle()
    assert follower.terms() == log
    written = [e.index for rd in follower.readies for e in rd.entries]
    assert written == fresh
    assert [e.term for e in follower.storage.entries(Index(2), Index(2 + len(log)), 1 << 20)] == log


# Figure 7: the leader of term 8, and six followers that lack entries, have too many, or both.
LEADER_LOG = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("follower", FIGURE_7)
def test_5_3_a_leader_brings_every_follower_of_figure_7_to_its_own_log(follower):
    net = network()
    log = FIGURE_7[follower]
    net.members[MemberID(1)] = lone(1, (1, 2, 3), *LEADER_LOG, term=7)
    net.members[MemberID(2)] = lone(2, (1, 2, 3), *log, term=log[-1])
    net.elect(1)
    assert net[1].term == 8
    net[1].propose(b"data")
    net.run()
    assert net[2].terms() == net[1].terms() == [*LEADER_LOG, 8, 8]
    assert net[2].committed == net[1].committed == net[1].last


def test_5_3_a_leader_probes_at_most_once_for_each_term():
    leader = lone(1, (1, 2), 3, 3, 3, 5, 5, 5, 5, 5, term=5).win()
    leader.take()
    # The follower has 1 1 1 1 2 2 and hints at its last entry.
    leader.receive(
        MsgType.APP_RESP,
        2,
        leader.term,
        reject=True,
        index=Index(9),
        reject_hint=Index(6),
        log_term=Term(2),
    )
    assert [m.index for m in leader.take(MsgType.APP)] == [1]


# --- 5.4.1 Election restriction


@pytest.mark.parametrize(
    ("log", "last_term", "last_index", "refused"),
    [
        ((1,), 1, 2, False),
        ((1,), 1, 3, False),
        ((1, 1), 1, 2, True),
        ((1,), 2, 2, False),
        ((1,), 2, 3, False),
        ((1, 1), 2, 2, False),
        ((2,), 1, 2, True),
        ((2,), 1, 3, True),
        ((2, 1), 1, 1, True),
    ],
)
def test_5_4_1_a_voter_refuses_a_candidate_with_an_older_log(log, last_term, last_index, refused):
    voter = lone(1, (1, 2), *log)
    voter.receive(MsgType.VOTE, 2, 3, log_term=Term(last_term), index=Index(last_index))
    [answer] = voter.take()
    assert answer.reject is refused


# --- 5.4.2 Committing entries from previous terms


@pytest.mark.parametrize(("index", "committed"), [(2, 1), (3, 1), (4, 4)])
def test_5_4_2_only_entries_of_the_own_term_commit_by_counting(index, committed):
    leader = lone(1, (1, 2), 1, 2, term=2).win()
    assert leader.term == 3
    leader.acknowledge(2, index=index)
    assert leader.committed == committed


# --- 6 Cluster membership changes


def test_6_only_one_change_is_under_way_at_a_time():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.node.propose_conf_change(ConfChange(node_id=MemberID(4)))
    leader.node.propose_conf_change(ConfChange(node_id=MemberID(5)))
    leader.settle().acknowledge(2, 3)
    assert leader.raft.tracker.config.voters == {1, 2, 3, 4}
    assert leader.applied[-1].data == b""


def test_6_a_leader_steps_down_once_its_removal_is_committed():
    leader = lone(1, (1, 2, 3), step_down_on_removal=True).win().acknowledge(2, 3)
    leader.node.propose_conf_change(ConfChange(ConfChangeType.REMOVE_NODE, MemberID(1)))
    leader.settle()
    assert leader.state is LEADER
    leader.acknowledge(2, 3)
    assert leader.state is FOLLOWER
    with pytest.raises(ProposalDropped):
        leader.propose(b"late")


def test_6_a_removed_member_that_campaigns_disturbs_nobody_who_hears_a_leader():
    net = network(3, check_quorum=True, pre_vote=True).elect(1)
    net.beat(1)
    net[2].receive(MsgType.VOTE, 9, net[2].term + 7, log_term=Term(9), index=Index(99))
    assert net[2].take() == []
    assert (net[2].term, net[2].lead) == (1, 1)


# --- 7 Log compaction


def test_7_a_follower_that_needs_a_discarded_entry_gets_the_snapshot():
    net = network().elect(1)
    net.cut_off(3)
    for number in range(5):
        net[1].propose(b"%d" % number)
        net.run()
    leader = net[1]
    leader.storage.create_snapshot(Index(leader.committed), data=b"state")
    leader.storage.compact(Index(leader.committed))
    net.heal()
    net.beat(1).beat(1)
    assert net[3].storage.snapshot().data == b"state"
    net[1].propose(b"after")
    net.run()
    assert net[3].data()[-1] == b"after"
    assert net[3].committed == net[1].committed


def test_7_a_snapshot_of_a_prefix_keeps_the_entries_after_it():
    follower = lone(1, (1, 2, 3), 1, 1, 1, term=1)
    snapshot = lone(2, (1, 2, 3), 1, 1, 1).storage.create_snapshot(Index(3), data=b"state")
    follower.receive(MsgType.SNAP, 2, 1, snapshot=snapshot)
    [answer] = follower.take()
    assert (answer.index, follower.committed, follower.last) == (3, 3, 4)


# --- 8 Client interaction


def test_8_a_leader_commits_an_empty_entry_at_the_start_of_its_term():
    leader = lone(1, (1, 2, 3), 1, 1, term=1).win()
    [first, _] = leader.take(MsgType.APP)
    assert [(e.term, e.data) for e in first.entries] == [(2, b"")]


def test_8_a_read_waits_until_a_majority_has_confirmed_the_leader():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.take()
    leader.node.read_index(b"read")
    beats = leader.take(MsgType.HEARTBEAT)
    assert leader.reads == []
    leader.receive(MsgType.HEARTBEAT_RESP, 2, leader.term, context=beats[0].context)
    assert [(r.index, r.context) for r in leader.settle().reads] == [(leader.committed, b"read")]
