"""The configuration in force, every member's progress, and the votes of an election."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvorum.raft.progress import Inflights, Progress
from kvorum.raft.quorum import VoteResult, format_voters, joint_index, joint_vote
from kvorum.raft.types import ConfState
from kvorum.types import Index, MemberID

NOBODY: frozenset[MemberID] = frozenset()

ProgressMap = dict[MemberID, Progress]


@dataclass(frozen=True, slots=True)
class TrackedConfig:
    """Who votes and who only learns.

    While ``outgoing`` is not empty the configuration is joint, and both sets of voters must agree.
    ``learners`` shares nobody with either set of voters. A voter who is to become a learner, and
    is still in ``outgoing``, waits in ``learners_next`` until the joint configuration is left:

        voters (1 2 3)                                     demote 3
        voters (1 2) & outgoing (1 2 3), learners_next (3)  joint
        voters (1 2), learners (3)                          left
    """

    voters: frozenset[MemberID] = NOBODY
    outgoing: frozenset[MemberID] = NOBODY
    learners: frozenset[MemberID] = NOBODY
    learners_next: frozenset[MemberID] = NOBODY
    auto_leave: bool = False

    def joint(self) -> bool:
        return bool(self.outgoing)

    def all_voters(self) -> list[MemberID]:
        """Everybody who has a vote in either half, in order."""
        return sorted(self.voters | self.outgoing)

    def conf_state(self) -> ConfState:
        return ConfState(
            voters=tuple(sorted(self.voters)),
            learners=tuple(sorted(self.learners)),
            voters_outgoing=tuple(sorted(self.outgoing)),
            learners_next=tuple(sorted(self.learners_next)),
            auto_leave=self.auto_leave,
        )

    def __str__(self) -> str:
        text = "voters=" + format_voters(self.voters)
        if self.outgoing:
            text += "&&" + format_voters(self.outgoing)
        if self.learners:
            text += " learners=" + format_voters(self.learners)
        if self.learners_next:
            text += " learners_next=" + format_voters(self.learners_next)
        return text + " autoleave" if self.auto_leave else text


class ProgressTracker:
    """``progress`` is ordered by member id, so that whoever goes through it is repeatable."""

    __slots__ = ("_sole_voter", "config", "max_inflight", "max_inflight_bytes", "progress", "votes")

    def __init__(self, max_inflight: int, max_inflight_bytes: int = 0) -> None:
        self.max_inflight = max_inflight
        self.max_inflight_bytes = max_inflight_bytes
        self.votes: dict[MemberID, bool] = {}
        self.switch(TrackedConfig(), {})

    def switch(self, config: TrackedConfig, progress: ProgressMap) -> None:
        """Put another configuration in force."""
        self.config = config
        self.progress = dict(sorted(progress.items()))
        single = len(config.voters) == 1 and not config.outgoing
        self._sole_voter = progress[next(iter(config.voters))] if single else None

    def new_inflights(self) -> Inflights:
        return Inflights(self.max_inflight, self.max_inflight_bytes)

    def is_singleton(self) -> bool:
        """Whether one voter decides alone."""
        return self._sole_voter is not None

    def reset_progress(self, self_id: MemberID, last: Index) -> None:
        """Forget what was known of everybody, but for this member's own log."""
        fresh = {
            member: Progress(
                match=last if member == self_id else Index(0),
                next=Index(last + 1),
                inflights=self.new_inflights(),
                is_learner=old.is_learner,
            )
            for member, old in self.progress.items()
        }
        self.switch(self.config, fresh)

    def committed(self) -> Index:
        """The largest index that the voters' acknowledgements commit (figure 2, leaders)."""
        if self._sole_voter is not None:
            return self._sole_voter.match
        matched = {member: one.match for member, one in self.progress.items()}
        return Index(joint_index(self.config.voters, self.config.outgoing, matched))

    def quorum_active(self) -> bool:
        """Whether a quorum was heard of since the activity marks were last cleared."""
        active = {
            member: one.recent_active for member, one in self.progress.items() if not one.is_learner
        }
        return self._result(active) is VoteResult.WON

    def reset_votes(self) -> None:
        self.votes = {}

    def record_vote(self, member: MemberID, granted: bool) -> None:
        """The first vote of a member counts, a repeated one does not."""
        self.votes.setdefault(member, granted)

    def tally_votes(self) -> tuple[int, int, VoteResult]:
        """Votes granted and rejected by present voters, and how the election stands."""
        cast = [
            self.votes[member]
            for member, one in self.progress.items()
            if not one.is_learner and member in self.votes
        ]
        granted = sum(cast)
        return granted, len(cast) - granted, self._result(self.votes)

    def _result(self, votes: dict[MemberID, bool]) -> VoteResult:
        return joint_vote(self.config.voters, self.config.outgoing, votes)


def format_progress(members: Iterable[tuple[MemberID, Progress]]) -> str:
    """One line a member, in order."""
    return "".join(f"{member}: {progress}\n" for member, progress in sorted(members))
