"""Why a member cannot start."""

from __future__ import annotations

from typing import Final

TOO_MANY_LEARNERS: Final = "membership: too many learner members in cluster"
"""As etcd says it at a start; clients are told so by ``etcdserver``."""


class StartError(Exception):
    """The member cannot start as things are; the text says what is wrong and how to mend it."""


class BadDataDirectory(StartError):
    """What the data directory holds does not fit together, or cannot be used."""


class BadInitialCluster(StartError):
    """The configuration names no cluster that this member could begin."""


class CannotJoin(StartError):
    """The running cluster cannot be asked, is not the one configured, or will not have us."""


class DiscoveryFailed(StartError):
    """The discovery service did not tell the members of the new cluster."""


class CorruptMember(StartError):
    """The member holds something else than the others."""


class MemberRemoved(StartError):
    """The member does not belong to its cluster any more. That is no failure: it ends with 0."""

    def __init__(self) -> None:
        super().__init__("the member has been permanently removed from the cluster")
