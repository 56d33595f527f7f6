"""What can go wrong with the database file. None of these reaches a client as it is."""

from __future__ import annotations


class BackendError(Exception):
    """Any failure of the backend."""


class OpenError(BackendError):
    """The database file cannot be opened; the message says why and what is affected."""


class LockedError(OpenError):
    """Another process has the database file open. The caller may try again later."""


class CorruptError(OpenError):
    """The file is not a database, or is damaged."""


class CommitError(BackendError):
    """A commit failed: nothing of it is on disk, and no later commit will be tried."""


class DefragError(BackendError):
    """A defragmentation was given up. The database goes on as it was before."""


class ViewLostError(BackendError):
    """A read view ended before its reader did, because the backend was closed or had to grow."""
