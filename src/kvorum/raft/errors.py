"""What can go wrong inside the raft core, as classes.

``RaftError`` are expected outcomes that a caller handles. ``InvariantViolation`` is a bug or a
corrupted log: the member must stop, since carrying on could lose committed data.
"""

from __future__ import annotations


class RaftError(Exception):
    """An expected failure of a raft operation; its text is etcd's."""

    message = ""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.message)


class ProposalDropped(RaftError):
    """Nobody here can take the proposal now; the proposer may try again."""

    message = "raft proposal dropped"


class StepLocalMessage(RaftError):
    """A message type that only this member may make came from outside."""

    message = "raft: cannot step raft local message"


class StepPeerNotFound(RaftError):
    """A response came from a member that the configuration does not have."""

    message = "raft: cannot step as peer not found"


class LogCompacted(RaftError):
    """The wanted log index is older than the last snapshot."""

    message = "requested index is unavailable due to compaction"


class LogUnavailable(RaftError):
    """The wanted log index is not there (yet)."""

    message = "requested entry at index is unavailable"


class SnapshotOutOfDate(RaftError):
    """A snapshot older than the one at hand was offered."""

    message = "requested index is older than the existing snapshot"


class SnapshotTemporarilyUnavailable(RaftError):
    """The storage needs more time to prepare a snapshot; raft asks again later."""

    message = "snapshot is temporarily unavailable"


class ConfChangeError(RaftError):
    """A configuration change that would break an invariant of the membership."""


class DecodeError(RaftError, ValueError):
    """Bytes that are no valid raftpb message."""


class InvariantViolation(RuntimeError):
    """The state machine met a state that raft rules out."""
