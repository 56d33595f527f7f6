"""Cluster versions, and how one is decided on.

A cluster works as its oldest member does: its version is the lowest of its members' releases,
without the patch. It is only raised, but for a downgrade, which the operator has to allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from kvorum.version import ETCD_VERSION, MIN_CLUSTER_VERSION

# A release as semver has it; what follows the three numbers does not count here.
_RELEASE: Final = re.compile(r"(\d{1,9})\.(\d{1,9})\.\d{1,9}(-[\w.-]+)?(\+[\w.-]+)?", re.ASCII)


class Version(NamedTuple):
    """Major and minor number; as text with a patch of 0, as the log and the buckets hold it."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.0"

    def below(self) -> Version:
        """The only version that one may go down to from this one."""
        return Version(self.major, self.minor - 1)


def parse_version(text: str) -> Version | None:
    """The version of a release such as ``3.5.1`` or ``3.7.0-rc.0``; None if it is none
    (``not_decided``, empty)."""
    match = _RELEASE.fullmatch(text)
    return Version(int(match[1]), int(match[2])) if match else None


def _release(text: str) -> Version:
    version = parse_version(text)
    assert version is not None, text
    return version


OWN: Final = _release(ETCD_VERSION)
"""The newest cluster version that this member can work under."""
LOWEST: Final = _release(MIN_CLUSTER_VERSION)
"""What a cluster takes first if not all members could be asked."""


class InvalidDowngrade(Exception):
    """The downgrade that is under way does not lead from where the cluster is to its target."""


def decide(
    current: Version | None, servers: Iterable[Version | None], target: Version | None
) -> Version | None:
    """The version that the cluster should have next, or None if it should keep what it has.

    Args:
        current: the cluster version, None if none was set yet.
        servers: the releases of all members, None for one that could not be asked.
        target: of the downgrade under way, if there is one.

    Raises:
        InvalidDowngrade: the target is not the version just below.
    """
    found = list(servers)
    known = [version for version in found if version is not None]
    lowest = min(known) if known and len(known) == len(found) else None
    if current is None:
        return LOWEST if lowest is None else lowest
    if lowest is None:
        return None
    if target is not None:
        return _decide_downgrade(current, lowest, target)
    return lowest if current < lowest and current.major == lowest.major else None


def _decide_downgrade(current: Version, lowest: Version, target: Version) -> Version | None:
    if target == current:
        return None
    if target != current.below() or target != lowest.below():
        raise InvalidDowngrade(
            f"cannot go down to {target} from cluster version {current} with members of {lowest}"
        )
    return target
