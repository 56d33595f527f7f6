"""Why a member cannot start."""

from __future__ import annotations


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
