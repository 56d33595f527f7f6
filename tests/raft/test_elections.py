"""Elections beyond the paper's: pre-vote, check-quorum, leases, transfer, forgetting a leader."""

from __future__ import annotations

import pytest
from raftlab.driver import BASE, log_of, lone, network

from kvorum.raft import (
    ConfChange,
    Entry,
    InvariantViolation,
    MsgType,
    ProposalDropped,
    ReadOnlyOption,
    StateType,
)
from kvorum.raft.codec import encode_conf_change
from kvorum.types import Index, MemberID, Term

FOLLOWER, CANDIDATE, LEADER = StateType.FOLLOWER, StateType.CANDIDATE, StateType.LEADER
PRE_CANDIDATE = StateType.PRE_CANDIDATE
LAST = {"log_term": Term(1), "index": BASE}


# --- pre-vote (thesis, section 9.6)


def test_a_pre_candidate_touches_neither_term_nor_vote():
    member = lone(1, (1, 2, 3), term=4, vote=2, pre_vote=True)
    member.node.campaign()
    requests = member.take(MsgType.PRE_VOTE)
    assert (member.state, member.term, member.raft.vote) == (PRE_CANDIDATE, 4, 2)
    assert [(m.to, m.term) for m in requests] == [(2, 5), (3, 5)]


def test_a_pre_vote_that_is_won_starts_the_election():
    member = lone(1, (1, 2, 3), pre_vote=True)
    member.node.campaign()
    member.settle().receive(MsgType.PRE_VOTE_RESP, 2, 1)
    assert (member.state, member.term) == (CANDIDATE, 1)
    # The rest of the answers to the pre-vote are too late to count for the election.
    member.settle().receive(MsgType.PRE_VOTE_RESP, 3, 1)
    assert member.state is CANDIDATE


def test_a_pre_vote_that_is_lost_changes_nothing_but_the_role():
    member = lone(1, (1, 2, 3), term=4, pre_vote=True)
    member.node.campaign()
    for voter in (2, 3):
        member.settle().receive(MsgType.PRE_VOTE_RESP, voter, 4, reject=True)
    assert (member.state, member.term) == (FOLLOWER, 4)


def test_a_rejection_from_a_later_term_ends_the_pre_vote_in_it():
    member = lone(1, (1, 2, 3), pre_vote=True)
    member.node.campaign()
    member.settle().receive(MsgType.PRE_VOTE_RESP, 2, 6, reject=True)
    assert (member.state, member.term) == (FOLLOWER, 6)


def test_any_number_of_pre_votes_can_be_granted_in_a_term():
    voter = lone(1, (1, 2, 3))
    for asker in (2, 3):
        voter.receive(MsgType.PRE_VOTE, asker, 1, **LAST)
    assert [(m.to, m.term, m.reject) for m in voter.take()] == [(2, 1, False), (3, 1, False)]
    assert (voter.term, voter.raft.vote) == (0, 0)


def test_a_pre_vote_in_an_old_term_is_answered_with_ours():
    voter = lone(1, (1, 2, 3), term=7)
    voter.receive(MsgType.PRE_VOTE, 2, 3, **LAST)
    [answer] = voter.take()
    assert (answer.type, answer.term, answer.reject) == (MsgType.PRE_VOTE_RESP, 7, True)


def test_a_member_that_was_cut_off_does_not_disturb_the_leader():
    net = network(3, pre_vote=True).elect(1)
    net.cut_off(3)
    net[3].tick(100)
    net.run()
    net.heal()
    net.beat(1).beat(1)
    assert (net[1].state, net[1].term, net[3].term, net[3].lead) == (LEADER, 1, 1, 1)


# --- check-quorum


def test_a_leader_that_hears_nobody_steps_down_after_two_election_times():
    net = network(3, check_quorum=True).elect(1)
    net.cut_off(1)
    net[1].tick(10)
    assert net[1].state is LEADER
    net[1].tick(10)
    assert (net[1].state, net[1].lead) == (FOLLOWER, 0)


def test_a_leader_that_hears_a_quorum_stays():
    net = network(3, check_quorum=True).elect(1)
    net.cut_off(3)
    for _ in range(50):
        net.beat(1)
    assert net[1].state is LEADER


def test_without_check_quorum_a_leader_stays_whatever_happens():
    net = network(3).elect(1)
    net.cut_off(1)
    net[1].tick(100)
    assert net[1].state is LEADER


@pytest.mark.parametrize("kind", [MsgType.VOTE, MsgType.PRE_VOTE])
def test_who_hears_a_leader_ignores_other_candidates(kind):
    follower = lone(1, (1, 2, 3), check_quorum=True)
    follower.receive(MsgType.HEARTBEAT, 2, 1).take()
    follower.tick(9).receive(kind, 3, 9, **LAST)
    assert follower.take() == []
    assert (follower.term, follower.lead) == (1, 2)
    follower.tick().receive(kind, 3, 9, **LAST)
    assert len(follower.take()) == 1


@pytest.mark.parametrize("kind", [MsgType.HEARTBEAT, MsgType.APP])
@pytest.mark.parametrize("option", ["check_quorum", "pre_vote"])
def test_a_leader_of_an_old_term_is_told_so(kind, option):
    follower = lone(1, (1, 2, 3), term=5, **{option: True})
    follower.receive(kind, 2, 3)
    [answer] = follower.take()
    assert (answer.type, answer.to, answer.term) == (MsgType.APP_RESP, 2, 5)


def test_a_member_with_a_higher_term_is_freed_by_that_answer():
    net = network(3, check_quorum=True).elect(1)
    net[3].receive(MsgType.VOTE, 2, 9, context=b"CampaignTransfer", **LAST)
    net.lose(MsgType.VOTE_RESP)
    net.run()
    net.heal()
    net.beat(1)
    assert (net[1].state, net[1].term) == (FOLLOWER, 9)


# --- who may campaign


def test_a_learner_does_not_campaign():
    learner = lone(4, (1, 2, 3), learners=(4,)).tick(100)
    learner.node.campaign()
    assert (learner.state, learner.take()) == (FOLLOWER, [])


def test_a_learner_votes_nevertheless():
    learner = lone(4, (1, 2, 3), learners=(4,))
    learner.receive(MsgType.VOTE, 1, 1, **LAST)
    assert [m.reject for m in learner.take()] == [False]


def test_a_leader_does_not_campaign():
    leader = lone(1, (1, 2, 3)).win()
    leader.node.campaign()
    assert (leader.state, leader.term) == (LEADER, 1)


@pytest.mark.parametrize("pages", [1, 1 << 20])
def test_who_has_a_change_to_apply_does_not_campaign(pages):
    member = lone(1, (1, 2, 3), max_committed_size_per_ready=pages)
    kind, data = encode_conf_change(ConfChange(node_id=MemberID(4)))
    entries = [*log_of(1), Entry(Term(1), Index(3), kind, data)]
    member.receive(MsgType.APP, 2, 1, entries=entries, commit=Index(3), **LAST)
    member.node.campaign()
    assert member.state is FOLLOWER
    member.settle()
    member.node.campaign()
    assert member.state is CANDIDATE


def test_plain_entries_to_apply_are_no_obstacle():
    member = lone(1, (1, 2, 3))
    member.receive(MsgType.APP, 2, 1, entries=log_of(1, 1), commit=Index(3), **LAST)
    member.node.campaign()
    assert member.state is CANDIDATE


@pytest.mark.parametrize(
    ("role", "become"),
    [(LEADER, "become_candidate"), (LEADER, "become_pre_candidate"), (FOLLOWER, "become_leader")],
)
def test_roles_do_not_change_against_the_rules(role, become):
    member = lone(1, (1, 2, 3))
    if role is LEADER:
        member.win()
    with pytest.raises(InvariantViolation, match="invalid transition"):
        getattr(member.raft, become)()


# --- leadership transfer (thesis, section 3.10)


def test_transfer_to_a_member_that_has_everything():
    net = network(3, check_quorum=True, pre_vote=True).elect(1)
    net[1].node.transfer_leader(MemberID(2))
    net.run()
    assert [net[n].state for n in (1, 2, 3)] == [FOLLOWER, LEADER, FOLLOWER]
    assert net[3].lead == 2


def test_transfer_waits_until_the_member_has_everything():
    net = network().elect(1)
    net.cut_off(3)
    net[1].propose(b"data")
    net.run()
    net.heal()
    net[1].node.transfer_leader(MemberID(3))
    net.beat(1)
    assert net[3].state is LEADER
    assert net[3].data() == [b"data"]


def test_a_follower_passes_the_request_on():
    net = network().elect(1)
    net[2].node.transfer_leader(MemberID(3))
    net.run()
    assert net[3].state is LEADER


def test_without_a_leader_there_is_nobody_to_pass_it_on_to():
    member = lone()
    member.node.transfer_leader(MemberID(3))
    assert member.take() == []


@pytest.mark.parametrize("to", [1, 4, 9])
def test_transfer_to_oneself_a_learner_or_a_stranger_is_ignored(to):
    leader = lone(1, (1, 2, 3), learners=(4,)).win().acknowledge(2, 3, 4)
    leader.take()
    leader.node.transfer_leader(MemberID(to))
    assert (leader.take(), leader.raft.lead_transferee) == ([], 0)


def test_no_proposals_while_leadership_is_handed_over_for_one_election_time():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.node.transfer_leader(MemberID(2))
    with pytest.raises(ProposalDropped):
        leader.propose(b"data")
    leader.tick(9)
    with pytest.raises(ProposalDropped):
        leader.propose(b"data")
    leader.tick()
    leader.propose(b"data")
    assert leader.state is LEADER


def test_a_repeated_request_is_ignored_and_another_replaces_it():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.take()
    for to in (2, 2, 3):
        leader.node.transfer_leader(MemberID(to))
    assert [m.to for m in leader.take(MsgType.TIMEOUT_NOW)] == [2, 3]
    assert leader.raft.lead_transferee == 3


def test_only_a_voter_among_followers_obeys_timeout_now():
    for role in (CANDIDATE, LEADER):
        member = lone(1, (1, 2, 3))
        member.node.campaign()
        member.settle()
        if role is LEADER:
            member.receive(MsgType.VOTE_RESP, 2, 1).settle()
        member.receive(MsgType.TIMEOUT_NOW, 2, 1)
        assert (member.state, member.term) == (role, 1)
    outsider = lone(9, (1, 2, 3)).receive(MsgType.TIMEOUT_NOW, 2, 1)
    assert outsider.state is FOLLOWER


# --- forgetting the leader


def test_who_forgets_its_leader_may_vote_for_another():
    follower = lone(1, (1, 2, 3), check_quorum=True)
    follower.receive(MsgType.HEARTBEAT, 2, 1).take()
    follower.node.forget_leader()
    follower.node.forget_leader()
    assert follower.lead == 0
    follower.receive(MsgType.VOTE, 3, 2, **LAST)
    assert [m.reject for m in follower.take()] == [False]
    follower.receive(MsgType.HEARTBEAT, 3, 2)
    assert follower.lead == 3


def test_a_leader_does_not_forget_itself():
    leader = lone(1, (1, 2, 3)).win()
    leader.node.forget_leader()
    assert leader.lead == 1


def test_a_lease_must_not_be_forgotten():
    option = ReadOnlyOption.LEASE_BASED
    follower = lone(1, (1, 2, 3), check_quorum=True, read_only_option=option)
    follower.receive(MsgType.HEARTBEAT, 2, 1)
    follower.node.forget_leader()
    assert follower.lead == 2
