"""What --strict-reconfig-check lets through, case by case."""

from __future__ import annotations

import pytest

from kvorum.membership import Member, quorum
from kvorum.types import MemberID


def members(kinds: str) -> list[Member]:
    """One member for each letter: S started, n not started, L a started learner, l one that is
    not."""
    return [
        Member(MemberID(number), (), "m" if kind in "SL" else "", is_learner=kind in "Ll")
        for number, kind in enumerate(kinds, 1)
    ]


@pytest.mark.parametrize(
    ("kinds", "fine"),
    [
        ("S", True),
        ("n", False),
        ("SS", True),
        ("Sn", False),
        ("SSS", True),
        ("SSn", False),
        ("SSSn", True),
        ("SSSnn", False),
        ("SL", True),
        ("SSnL", False),
        ("Sl", True),
    ],
)
def test_enough_started_to_add(kinds: str, fine: bool) -> None:
    assert quorum.enough_started_to_add(members(kinds)) is fine


@pytest.mark.parametrize(
    ("kinds", "leaving", "fine"),
    [
        ("S", 1, False),
        ("SS", 1, True),
        ("Sn", 1, False),
        ("Sn", 2, True),
        ("SSS", 1, True),
        ("SSn", 1, False),
        ("SSn", 3, True),
        ("SSL", 1, True),
        ("SnL", 1, False),
        ("SSSn", 4, True),
        ("SSnn", 1, False),
        ("S", 9, True),
    ],
)
def test_enough_started_to_remove(kinds: str, leaving: int, fine: bool) -> None:
    assert quorum.enough_started_to_remove(members(kinds), MemberID(leaving)) is fine


@pytest.mark.parametrize(
    ("kinds", "fine"),
    [("SL", True), ("nL", False), ("SnL", True), ("SnnL", False), ("SSnL", True), ("Sl", True)],
)
def test_enough_started_to_promote(kinds: str, fine: bool) -> None:
    assert quorum.enough_started_to_promote(members(kinds)) is fine


@pytest.mark.parametrize(
    ("kinds", "connected", "may_add", "may_remove"),
    [
        ("S", {1}, True, False),
        ("S", set(), True, False),
        ("SS", {1, 2}, True, True),
        ("SS", {1}, False, False),
        ("SSS", {1, 2, 3}, True, True),
        ("SSS", {1, 2}, False, False),
        ("SSSS", {1, 2, 3}, True, True),
        ("SSSSS", {1, 2, 3}, False, False),
        ("SSSSS", {1, 2, 3, 4}, True, True),
        ("SSL", {1, 3}, False, False),
        ("SSL", {1, 2}, True, True),
    ],
)
def test_healthy(kinds: str, connected: set[int], may_add: bool, may_remove: bool) -> None:
    assert quorum.healthy_to_add(members(kinds), connected.__contains__) is may_add
    assert quorum.healthy_to_remove(members(kinds), connected.__contains__) is may_remove
