"""Majorities against a count that is slow and obvious."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from raftlab import naive_quorum

from kvorum.raft import NO_LIMIT
from kvorum.raft.quorum import (
    VoteResult,
    format_voters,
    joint_index,
    joint_vote,
    majority_index,
    majority_vote,
)

members = st.integers(1, 9)
voter_sets = st.frozensets(members, max_size=7)
acks = st.dictionaries(members, st.integers(0, 12))
ballots = st.dictionaries(members, st.booleans())


@given(voter_sets, acks)
def test_committed_index(voters, acked):
    assert majority_index(voters, acked) == naive_quorum.committed_index(voters, acked)


@given(voter_sets, voter_sets, acks)
def test_joint_committed_index(incoming, outgoing, acked):
    halves = [naive_quorum.committed_index(half, acked) for half in (incoming, outgoing)]
    assert joint_index(incoming, outgoing, acked) == min(halves)


@given(voter_sets, ballots)
def test_vote_result(voters, votes):
    assert majority_vote(voters, votes) is naive_quorum.vote_result(voters, votes)


@given(voter_sets, voter_sets, ballots)
def test_joint_vote_result(incoming, outgoing, votes):
    halves = {naive_quorum.vote_result(half, votes) for half in (incoming, outgoing)}
    expected = next(
        result
        for result in (VoteResult.LOST, VoteResult.PENDING, VoteResult.WON)
        if result in halves
    )
    assert joint_vote(incoming, outgoing, votes) is expected


@given(voter_sets, ballots, ballots)
def test_a_decided_election_stays_decided(voters, votes, later):
    result = majority_vote(voters, votes)
    if result is not VoteResult.PENDING:
        assert majority_vote(voters, {**later, **votes}) is result


def test_nobody_agrees_to_everything():
    assert majority_index(frozenset(), {}) == NO_LIMIT
    assert majority_vote(frozenset(), {}) is VoteResult.WON


def test_ids_are_shown_in_hexadecimal():
    assert format_voters(frozenset({10, 2, 255})) == "(2 a ff)"
