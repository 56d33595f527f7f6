"""What a majority, or two joint ones, agree on (paper section 5.3; thesis section 4.3).

A configuration is a set of voters. The empty set agrees to everything, so that a joint
configuration with one empty half decides as the other half does.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum

from kvorum.raft.types import NO_LIMIT
from kvorum.types import MemberID

Voters = AbstractSet[MemberID]


class VoteResult(Enum):
    """How an election stands; the value is what the log calls it."""

    PENDING = "VotePending"
    LOST = "VoteLost"
    WON = "VoteWon"


def majority_index(voters: Voters, acked: Mapping[MemberID, int]) -> int:
    """The largest index that a majority of ``voters`` has acknowledged; who is silent is at 0."""
    if not voters:
        return NO_LIMIT
    ordered = sorted([acked.get(voter, 0) for voter in voters])
    return ordered[(len(ordered) - 1) // 2]


def joint_index(incoming: Voters, outgoing: Voters, acked: Mapping[MemberID, int]) -> int:
    """The largest index that both majorities have acknowledged."""
    return min(majority_index(incoming, acked), majority_index(outgoing, acked))


def majority_vote(voters: Voters, votes: Mapping[MemberID, bool]) -> VoteResult:
    """The result among ``voters``, given the votes so far; others' votes do not count."""
    if not voters:
        return VoteResult.WON
    cast = [votes[voter] for voter in voters if voter in votes]
    needed = len(voters) // 2 + 1
    granted = sum(cast)
    if granted >= needed:
        return VoteResult.WON
    missing = len(voters) - len(cast)
    return VoteResult.PENDING if granted + missing >= needed else VoteResult.LOST


def joint_vote(incoming: Voters, outgoing: Voters, votes: Mapping[MemberID, bool]) -> VoteResult:
    """The result when both majorities must agree: one loss decides."""
    results = {majority_vote(incoming, votes), majority_vote(outgoing, votes)}
    for decided in (VoteResult.LOST, VoteResult.PENDING):
        if decided in results:
            return decided
    return VoteResult.WON


def format_voters(voters: Voters) -> str:
    """The set as etcd's logs show it: ``(1 2 3)``, ids in hexadecimal."""
    return "(" + " ".join(f"{voter:x}" for voter in sorted(voters)) + ")"
