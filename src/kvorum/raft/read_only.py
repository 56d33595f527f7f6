"""Reads that wait until their leader is known to be one still (thesis section 6.4).

A leader notes its commit index for every read, and numbers the reads. Each heartbeat carries the
number of the newest read, each response repeats it; a number that a quorum has repeated confirms
that read and all before it.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple

from kvorum.raft.quorum import joint_index
from kvorum.raft.tracker import TrackedConfig
from kvorum.raft.types import Message
from kvorum.types import Index, MemberID


class ReadOnlyOption(Enum):
    """What makes a read linearizable: asking a quorum, or trusting the leader's lease.

    The lease holds only while clocks run at about the same speed.
    """

    SAFE = "safe"
    LEASE_BASED = "lease-based"


class PendingRead(NamedTuple):
    """A read request, and the commit index when it came in."""

    request: Message
    index: Index  # type: ignore[assignment]  # hides tuple.index, which nobody misses


_NUMBER_BYTES = 8


class ReadOnly:
    """The reads of one leadership, oldest first."""

    __slots__ = ("_acks", "_confirmed", "_waiting")

    def __init__(self) -> None:
        self._acks: dict[MemberID, int] = {}
        self._waiting: deque[PendingRead] = deque()
        # How many reads were confirmed, which is the number of the newest of them.
        self._confirmed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Message, index: Index) -> None:
        self._waiting.append(PendingRead(request, index))

    def context(self) -> bytes:
        """What a heartbeat must carry to confirm all waiting reads; empty if none waits."""
        if not self._waiting:
            return b""
        return (self._confirmed + len(self._waiting)).to_bytes(_NUMBER_BYTES, "little")

    def acknowledge(self, member: MemberID, context: bytes) -> None:
        """``member`` has answered the heartbeat that carried ``context``.

        One that no heartbeat of this leadership carried confirms nothing.
        """
        number = int.from_bytes(context[:_NUMBER_BYTES], "little")
        if len(context) < _NUMBER_BYTES or number > self._confirmed + len(self._waiting):
            return
        self._acks[member] = max(self._acks.get(member, 0), number)

    def confirmed(self, config: TrackedConfig) -> list[PendingRead]:
        """The reads that a quorum has confirmed since, taken out."""
        number = joint_index(config.voters, config.outgoing, self._acks)
        fresh = min(number - self._confirmed, len(self._waiting))
        if fresh <= 0:
            return []
        self._confirmed += fresh
        return [self._waiting.popleft() for _ in range(fresh)]
