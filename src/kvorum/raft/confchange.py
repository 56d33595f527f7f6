"""Configuration changes as functions from one configuration to the next.

A change of one voter is safe by itself, since any two majorities of the old and the new set share a
member (paper section 6; thesis section 4.1). Everything else passes through a joint configuration,
in which the old and the new majority must both agree (thesis section 4.3).

Nothing here touches the configuration in force: a refused change leaves no trace. Input and result
are both checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kvorum.raft.errors import ConfChangeError
from kvorum.raft.progress import Progress
from kvorum.raft.tracker import NOBODY, ProgressMap, ProgressTracker, TrackedConfig
from kvorum.raft.types import (
    NO_INDEX,
    ConfChangeSingle,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
)
from kvorum.types import Index, MemberID

Changes = Iterable[ConfChangeSingle]
Outcome = tuple[TrackedConfig, ProgressMap]


def change(tracker: ProgressTracker, last_index: Index, cc: ConfChangeV2) -> Outcome:
    """What ``cc`` makes of the tracked configuration; raises ConfChangeError."""
    if cc.leaves_joint():
        return leave_joint(tracker)
    if cc.enters_joint():
        return enter_joint(tracker, last_index, cc.changes, auto_leave=cc.auto_leaves())
    return simple(tracker, last_index, cc.changes)


def enter_joint(
    tracker: ProgressTracker, last_index: Index, changes: Changes, *, auto_leave: bool
) -> Outcome:
    """From ``(1 2 3)`` to ``(1 2 3)&&(1 2 3)``, then ``changes`` to the incoming half."""
    draft = _Draft(tracker, last_index)
    if draft.outgoing:
        raise ConfChangeError("config is already joint")
    if not draft.voters:
        # An empty configuration may be filled, for a first start, but only step by step.
        raise ConfChangeError("can't make a zero-voter config joint")
    draft.outgoing = set(draft.voters)
    draft.auto_leave = auto_leave
    draft.apply(changes)
    return draft.result()


def leave_joint(tracker: ProgressTracker) -> Outcome:
    """The incoming half decides alone from here on; staged learners become learners."""
    draft = _Draft(tracker, NO_INDEX)
    if not draft.outgoing:
        raise ConfChangeError("can't leave a non-joint config")
    for member in draft.learners_next:
        draft.learners.add(member)
        draft.progress[member].is_learner = True
    for member in draft.outgoing - draft.voters - draft.learners:
        del draft.progress[member]
    draft.learners_next = set()
    draft.outgoing = set()
    draft.auto_leave = False
    return draft.result()


def simple(tracker: ProgressTracker, last_index: Index, changes: Changes) -> Outcome:
    """Changes that add or remove one voter at most, and any learners."""
    draft = _Draft(tracker, last_index)
    if draft.outgoing:
        raise ConfChangeError("can't apply simple config change in joint config")
    draft.apply(changes)
    if len(draft.voters ^ tracker.config.voters) > 1:
        raise ConfChangeError("more than one voter changed without entering joint config")
    return draft.result()


def restore(tracker: ProgressTracker, last_index: Index, state: ConfState) -> Outcome:
    """The configuration that ``state`` describes, built up in an empty ``tracker``.

    It is reached by legal steps only, so that every check applies. With
    voters (1 2 3), learners (5), outgoing (1 2 4 6), learners_next (4) these are: add 1, 2, 4 and
    6 one by one; then enter a joint configuration that removes 1 2 4 6, adds 1 2 3, and makes 5
    and 4 learners, of whom 4 must wait.
    """
    joins = [
        *_singles(ConfChangeType.ADD_NODE, state.voters),
        *_singles(ConfChangeType.ADD_LEARNER_NODE, state.learners),
        *_singles(ConfChangeType.ADD_LEARNER_NODE, state.learners_next),
    ]
    scratch = ProgressTracker(tracker.max_inflight, tracker.max_inflight_bytes)
    scratch.switch(tracker.config, tracker.progress)
    first = _singles(ConfChangeType.ADD_NODE, state.voters_outgoing) or joins
    for single in first:
        scratch.switch(*simple(scratch, last_index, [single]))
    if state.voters_outgoing:
        leaves = _singles(ConfChangeType.REMOVE_NODE, state.voters_outgoing)
        joint = enter_joint(scratch, last_index, leaves + joins, auto_leave=state.auto_leave)
        scratch.switch(*joint)
    return scratch.config, scratch.progress


def _singles(type: ConfChangeType, members: Iterable[MemberID]) -> list[ConfChangeSingle]:
    return [ConfChangeSingle(type, member) for member in members]


class _Draft:
    """A configuration being changed, on copies of everything that the change writes to."""

    def __init__(self, tracker: ProgressTracker, last_index: Index) -> None:
        config = tracker.config
        self.voters = set(config.voters)
        self.outgoing = set(config.outgoing)
        self.learners = set(config.learners)
        self.learners_next = set(config.learners_next)
        self.auto_leave = config.auto_leave
        self.progress = {member: one.copy() for member, one in tracker.progress.items()}
        self._tracker = tracker
        self._last_index = last_index
        check_invariants(config, tracker.progress)

    def result(self) -> Outcome:
        config = TrackedConfig(
            voters=frozenset(self.voters),
            outgoing=frozenset(self.outgoing),
            learners=frozenset(self.learners),
            learners_next=frozenset(self.learners_next),
            auto_leave=self.auto_leave,
        )
        check_invariants(config, self.progress)
        return config, self.progress

    def apply(self, changes: Changes) -> None:
        """Carry out ``changes`` on the incoming voters and the learners."""
        for single in changes:
            # etcd sets the id to 0 in a change that it has decided not to carry out.
            if single.node_id:
                self._apply_one(single)
        if not self.voters:
            raise ConfChangeError("removed all voters")

    def _apply_one(self, single: ConfChangeSingle) -> None:
        match single.type:
            case ConfChangeType.ADD_NODE:
                self._make_voter(single.node_id)
            case ConfChangeType.ADD_LEARNER_NODE:
                self._make_learner(single.node_id)
            case ConfChangeType.REMOVE_NODE:
                self._remove(single.node_id)
            case ConfChangeType.UPDATE_NODE:
                pass
            case _:
                raise ConfChangeError(f"unexpected conf type {int(single.type)}")

    def _make_voter(self, member: MemberID) -> None:
        progress = self.progress.get(member)
        if progress is None:
            self._add_progress(member, is_learner=False)
        else:
            progress.is_learner = False
            self.learners.discard(member)
            self.learners_next.discard(member)
        self.voters.add(member)

    def _make_learner(self, member: MemberID) -> None:
        progress = self.progress.get(member)
        if progress is None:
            self._add_progress(member, is_learner=True)
            self.learners.add(member)
            return
        if progress.is_learner:
            return
        self._remove(member)
        self.progress[member] = progress
        if member in self.outgoing:
            self.learners_next.add(member)
        else:
            progress.is_learner = True
            self.learners.add(member)

    def _remove(self, member: MemberID) -> None:
        self.voters.discard(member)
        self.learners.discard(member)
        self.learners_next.discard(member)
        # A voter of the outgoing half still counts until the joint configuration is left.
        if member not in self.outgoing:
            self.progress.pop(member, None)

    def _add_progress(self, member: MemberID, *, is_learner: bool) -> None:
        self.progress[member] = Progress(
            match=NO_INDEX,
            # The first probe is sent from the end of the log; a new member will ask to go back.
            next=max(self._last_index, Index(1)),
            inflights=self._tracker.new_inflights(),
            is_learner=is_learner,
            # Or the leader might step down before the new member had a chance to be heard.
            recent_active=True,
        )


def check_invariants(config: TrackedConfig, progress: ProgressMap) -> None:
    """Raise ConfChangeError unless ``config`` is sound and ``progress`` fits it."""
    tracked = (config.voters | config.outgoing, config.learners, config.learners_next)
    for member in sorted(NOBODY.union(*tracked)):
        if member not in progress:
            raise ConfChangeError(f"no progress for {member}")
    for member in sorted(config.learners_next):
        if member not in config.outgoing:
            raise ConfChangeError(f"{member} is in LearnersNext, but not Voters[1]")
        if progress[member].is_learner:
            raise ConfChangeError(f"{member} is in LearnersNext, but is already marked as learner")
    for member in sorted(config.learners):
        for half, voters in ((1, config.outgoing), (0, config.voters)):
            if member in voters:
                raise ConfChangeError(f"{member} is in Learners and Voters[{half}]")
        if not progress[member].is_learner:
            raise ConfChangeError(f"{member} is in Learners, but is not marked as learner")
    if not config.outgoing and replace(config, learners_next=NOBODY, auto_leave=False) != config:
        raise ConfChangeError("learners_next and auto_leave must be empty when not joint")
