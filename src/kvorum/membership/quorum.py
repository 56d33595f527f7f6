"""What ``--strict-reconfig-check`` asks: would there be a quorum after the change?

A member counts as started once it has published its name, and as connected while its messages have
been coming in. Learners count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from kvorum.membership.member import Member
from kvorum.types import MemberID

STEADY: Final = 5.0
"""Seconds for which a member must have been connected to count."""

Connected = Callable[[MemberID], bool]
"""Whether a member has been connected for `STEADY` seconds; the local one always is."""


def majority(members: int) -> int:
    return members // 2 + 1


def _voters(members: Iterable[Member]) -> list[Member]:
    return [member for member in members if not member.is_learner]


def _started(members: Iterable[Member]) -> int:
    return sum(1 for member in members if member.name)


def enough_started_to_add(members: Iterable[Member]) -> bool:
    """Whether the members that run make a quorum with one more voter, who does not run yet. The
    only member of a cluster may always be joined: it has to begin somehow."""
    voters = _voters(members)
    started = _started(voters)
    return (len(voters) == 1 and started == 1) or started >= majority(len(voters) + 1)


def enough_started_to_remove(members: Iterable[Member], leaving: MemberID) -> bool:
    """Whether the members that run make a quorum of those that stay."""
    staying = [member for member in _voters(members) if member.id != leaving]
    return _started(staying) >= majority(len(staying))


def enough_started_to_promote(members: Iterable[Member]) -> bool:
    """Whether they do with one more voter, who runs."""
    voters = _voters(members)
    return _started(voters) + 1 >= majority(len(voters) + 1)


def healthy_to_add(members: Iterable[Member], connected: Connected) -> bool:
    """Whether those connected would be a quorum with one more voter, who is not; again, the only
    one may be joined."""
    voters = _voters(members)
    active = sum(1 for member in voters if connected(member.id))
    return len(voters) == 1 or active >= majority(len(voters) + 1)


def healthy_to_remove(members: Iterable[Member], connected: Connected) -> bool:
    """Whether those connected would still be a quorum without one of them."""
    voters = _voters(members)
    active = sum(1 for member in voters if connected(member.id))
    return active - 1 >= 1 + (len(voters) - 1) // 2
