"""Majorities counted the slow and obvious way, to compare the real thing with."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from kvorum.raft import NO_LIMIT
from kvorum.raft.quorum import VoteResult
from kvorum.types import MemberID


def committed_index(voters: AbstractSet[MemberID], acked: Mapping[MemberID, int]) -> int:
    """The largest acknowledged index that more than half of the voters have reached."""
    if not voters:
        return NO_LIMIT
    candidates = {0} | {acked[voter] for voter in voters if voter in acked}
    return max(
        index
        for index in candidates
        if index == 0 or 2 * sum(acked.get(voter, -1) >= index for voter in voters) > len(voters)
    )


def vote_result(voters: AbstractSet[MemberID], votes: Mapping[MemberID, bool]) -> VoteResult:
    """Won if it is won should all who are silent refuse, lost if lost should they all agree."""

    def carried(silent: bool) -> bool:
        agreed = sum(votes.get(voter, silent) for voter in voters)
        return not voters or 2 * agreed > len(voters)

    if carried(silent=False):
        return VoteResult.WON
    return VoteResult.PENDING if carried(silent=True) else VoteResult.LOST
