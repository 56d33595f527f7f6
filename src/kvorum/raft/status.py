"""What a member says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from kvorum.raft.core import Raft
from kvorum.raft.progress import Progress
from kvorum.raft.tracker import TrackedConfig
from kvorum.raft.types import HardState, SoftState, StateType
from kvorum.types import Index, MemberID


@dataclass(frozen=True, slots=True)
class BasicStatus:
    """The member's place in the cluster; cheap to make."""

    id: MemberID
    hard_state: HardState
    soft_state: SoftState
    applied: Index
    lead_transferee: MemberID


@dataclass(frozen=True, slots=True)
class Status:
    """The same with the configuration, and, on a leader, a copy of every member's progress."""

    basic: BasicStatus
    config: TrackedConfig
    progress: dict[MemberID, Progress]


def basic_status(r: Raft) -> BasicStatus:
    return BasicStatus(
        id=r.id,
        hard_state=r.hard_state(),
        soft_state=r.soft_state(),
        applied=r.log.applied,
        lead_transferee=r.lead_transferee,
    )


def status(r: Raft) -> Status:
    progress = {}
    if r.state is StateType.LEADER:
        for member, one in r.tracker.progress.items():
            progress[member] = twin = one.copy()
            twin.inflights = one.inflights.copy()
    return Status(basic_status(r), r.tracker.config, progress)
