"""Configuration changes: what is refused, and that the detours lead to the same place."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.raft import ConfChangeError, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState
from kvorum.raft import confchange as cc
from kvorum.raft.tracker import ProgressTracker, TrackedConfig
from kvorum.raft.types import ConfChangeTransition
from kvorum.types import Index

ADD, REMOVE = ConfChangeType.ADD_NODE, ConfChangeType.REMOVE_NODE
LEARN, UPDATE = ConfChangeType.ADD_LEARNER_NODE, ConfChangeType.UPDATE_NODE
LAST = Index(10)

singles = st.builds(ConfChangeSingle, st.sampled_from(ConfChangeType), st.integers(1, 5))
initial = st.lists(singles, max_size=6).map(lambda more: [ConfChangeSingle(ADD, 1), *more])


def tracker_after(changes) -> ProgressTracker:
    """An empty configuration after ``changes``, one by one, without those that are refused."""
    tracker = ProgressTracker(10)
    for single in changes:
        try:
            tracker.switch(*cc.simple(tracker, LAST, [single]))
        except ConfChangeError:
            continue
    return tracker


def picture(outcome) -> tuple[str, dict[int, str]]:
    config, progress = outcome
    return str(config), {member: str(one) for member, one in sorted(progress.items())}


def _voters_after(voters, changes) -> set[int]:
    left = set(voters)
    for one in changes:
        if one.type is ADD:
            left.add(one.node_id)
        elif one.type in (REMOVE, LEARN):
            left.discard(one.node_id)
    return left


@given(initial, st.lists(singles, max_size=5))
def test_a_joint_detour_ends_where_single_steps_end(setup, changes):
    direct = tracker_after(setup)
    joint = tracker_after(setup)
    try:
        joint.switch(*cc.enter_joint(joint, LAST, changes, auto_leave=False))
    except ConfChangeError:
        # The only thing that can be wrong with a list of changes.
        assert not _voters_after(joint.config.voters, changes)
        return
    assert joint.config.outgoing == direct.config.voters
    joint.switch(*cc.leave_joint(joint))
    for single in changes:
        # The very last voter may go if another one follows, but not in single steps.
        try:
            direct.switch(*cc.simple(direct, LAST, [single]))
        except ConfChangeError:
            return
    assert joint.config == direct.config
    assert joint.progress.keys() == direct.progress.keys()


@given(initial, st.lists(singles, max_size=5), st.booleans())
def test_a_restored_configuration_is_the_one_that_was_saved(setup, changes, auto_leave):
    tracker = tracker_after(setup)
    with suppress(ConfChangeError):
        tracker.switch(*cc.enter_joint(tracker, LAST, changes, auto_leave=auto_leave))
    state = tracker.config.conf_state()
    restored = cc.restore(ProgressTracker(10), LAST, state)
    assert restored[0] == tracker.config
    assert restored[0].conf_state() == state
    assert restored[1].keys() == tracker.progress.keys()
    for member, one in restored[1].items():
        assert one.is_learner == tracker.progress[member].is_learner


@given(initial, singles)
def test_a_change_leaves_the_configuration_in_force_alone(setup, single):
    tracker = tracker_after(setup)
    before = picture((tracker.config, tracker.progress))
    for attempt in (
        lambda: cc.simple(tracker, LAST, [single]),
        lambda: cc.enter_joint(tracker, LAST, [single], auto_leave=True),
    ):
        with suppress(ConfChangeError):
            attempt()
        assert picture((tracker.config, tracker.progress)) == before


def change(type: ConfChangeType, *members: int) -> list[ConfChangeSingle]:
    return [ConfChangeSingle(type, member) for member in members]


@pytest.mark.parametrize(
    ("setup", "cc2", "complaint"),
    [
        (change(ADD, 1), ConfChangeV2(), "can't leave a non-joint config"),
        (change(ADD, 1), ConfChangeV2(changes=tuple(change(REMOVE, 1))), "removed all voters"),
        ([], ConfChangeV2(ConfChangeTransition.JOINT_EXPLICIT), "can't make a zero-voter"),
    ],
)
def test_what_is_refused(setup, cc2, complaint):
    with pytest.raises(ConfChangeError, match=complaint):
        cc.change(tracker_after(setup), LAST, cc2)


@pytest.mark.plain  # compiled, such a change cannot even be made
def test_a_change_of_no_known_type_is_refused():
    unknown = ConfChangeV2(changes=(ConfChangeSingle(9, 3),))  # type: ignore[arg-type]
    with pytest.raises(ConfChangeError, match="unexpected conf type 9"):
        cc.change(tracker_after(change(ADD, 1)), LAST, unknown)


def test_two_voters_cannot_change_in_a_simple_step():
    with pytest.raises(ConfChangeError, match="more than one voter changed"):
        cc.simple(tracker_after(change(ADD, 1, 2)), LAST, change(ADD, 3, 4))


def test_a_joint_configuration_is_left_before_anything_else():
    tracker = tracker_after(change(ADD, 1))
    tracker.switch(*cc.enter_joint(tracker, LAST, change(ADD, 2), auto_leave=False))
    with pytest.raises(ConfChangeError, match="already joint"):
        cc.enter_joint(tracker, LAST, [], auto_leave=False)
    with pytest.raises(ConfChangeError, match="in joint config"):
        cc.simple(tracker, LAST, [])


@pytest.mark.parametrize(
    ("transition", "count", "joint", "auto"),
    [
        (ConfChangeTransition.AUTO, 1, False, False),
        (ConfChangeTransition.AUTO, 2, True, True),
        (ConfChangeTransition.JOINT_IMPLICIT, 1, True, True),
        (ConfChangeTransition.JOINT_EXPLICIT, 1, True, False),
    ],
)
def test_which_changes_need_a_joint_configuration(transition, count, joint, auto):
    wanted = ConfChangeV2(transition, tuple(change(ADD, *range(2, 2 + count))))
    config, _ = cc.change(tracker_after(change(ADD, 1)), LAST, wanted)
    assert (config.joint(), config.auto_leave) == (joint, auto)


def test_a_cancelled_change_changes_nothing():
    tracker = tracker_after(change(ADD, 1))
    config, _ = cc.change(tracker, LAST, ConfChangeV2(changes=tuple(change(REMOVE, 0))))
    assert config == tracker.config


def test_a_demoted_voter_waits_until_the_joint_configuration_is_left():
    tracker = tracker_after(change(ADD, 1, 2, 3))
    tracker.switch(*cc.enter_joint(tracker, LAST, change(LEARN, 3), auto_leave=False))
    assert str(tracker.config) == "voters=(1 2)&&(1 2 3) learners_next=(3)"
    assert not tracker.progress[3].is_learner
    tracker.switch(*cc.leave_joint(tracker))
    assert str(tracker.config) == "voters=(1 2) learners=(3)"
    assert tracker.progress[3].is_learner


def test_a_new_member_is_active_and_probed_from_the_end_of_the_log():
    _, progress = cc.simple(tracker_after(change(ADD, 1)), LAST, change(ADD, 2))
    assert str(progress[2]) == "StateProbe match=0 next=10"


GOOD = TrackedConfig(frozenset({1}), frozenset({2}), frozenset({3}), frozenset({2}))


@pytest.mark.parametrize(
    ("config", "learners", "complaint"),
    [
        (replace(GOOD, voters=frozenset({9})), {3}, "no progress for 9"),
        (replace(GOOD, learners_next=frozenset({1})), {3}, "1 is in LearnersNext, but not Voters"),
        (GOOD, {2, 3}, "2 is in LearnersNext, but is already marked as learner"),
        (replace(GOOD, learners=frozenset({2})), {3}, r"2 is in Learners and Voters\[1\]"),
        (replace(GOOD, learners=frozenset({1})), {3}, r"1 is in Learners and Voters\[0\]"),
        (GOOD, set(), "3 is in Learners, but is not marked as learner"),
        (
            TrackedConfig(frozenset({1}), auto_leave=True),
            {3},
            "must be empty when not joint",
        ),
    ],
)
def test_broken_configurations_are_noticed(config, learners, complaint):
    _, progress = cc.restore(ProgressTracker(10), LAST, ConfState(voters=(1, 2, 3)))
    for member, one in progress.items():
        one.is_learner = member in learners
    with pytest.raises(ConfChangeError, match=complaint):
        cc.check_invariants(config, progress)


def test_an_update_changes_nothing_here():
    tracker = tracker_after(change(ADD, 1))
    assert cc.simple(tracker, LAST, change(UPDATE, 1))[0] == tracker.config
