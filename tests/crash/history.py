"""What clients did, what they were told, and what the store's own event log says happened."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Outcome(Enum):
    """What the client knows of its request."""

    ACKED = "acknowledged"
    REFUSED = "refused"  # a definite no: it must not have happened
    UNKNOWN = "unknown"  # no answer, or one that leaves it open


class Event(NamedTuple):
    """One change in the store's log; ``value`` is None for a deletion."""

    revision: int
    key: bytes
    value: bytes | None
    create_revision: int = 0
    version: int = 0
    lease: int = 0


class Pair(NamedTuple):
    """A live key as the store shows it."""

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(slots=True)
class Op:
    """One write of one client, which sends the next only when this one has ended.

    ``puts`` hold values that no other operation in the whole run writes, ``deletes`` single keys;
    only this client writes any of them. All of it is one transaction. ``invoked`` and ``returned``
    are ticks of one clock that all clients share.
    """

    client: str
    puts: Mapping[bytes, bytes]
    deletes: tuple[bytes, ...]
    invoked: int
    lease: int = 0
    revokes: int = 0  # the lease that this operation ends
    returned: int = 0
    outcome: Outcome = Outcome.UNKNOWN
    revision: int = 0  # told by the server; 0 if nothing was changed

    def __str__(self) -> str:
        what = f"{dict(self.puts)} delete {list(self.deletes)}"
        if self.revokes:
            what = f"revoke of lease {self.revokes}"
        return f"{self.client}'s {what} ({self.outcome.value}, revision {self.revision})"


@dataclass(slots=True)
class Read:
    """One linearizable read of one key."""

    key: bytes
    invoked: int
    returned: int
    revision: int
    pair: Pair | None


@dataclass(slots=True)
class Grant:
    """One lease that a client asked for."""

    lease: int
    ttl: int
    outcome: Outcome = Outcome.UNKNOWN


@dataclass(slots=True)
class Watched:
    """A watch over [``first``, ``end``) that its client resumes after every break.

    ``events`` are all that came, over all its streams; the next one is due from ``next_revision``.
    """

    name: str
    first: bytes
    end: bytes
    next_revision: int
    events: list[Event] = field(default_factory=list)

    def covers(self, key: bytes) -> bool:
        return self.first <= key < self.end


class Recorder:
    """The operations of one epoch (from a start of the server to its death), thread-safe."""

    def __init__(self) -> None:
        self.clock = itertools.count(1)
        self.ops: list[Op] = []
        self.reads: list[Read] = []
        self.grants: list[Grant] = []
        self.compacted = 0  # the highest revision an acknowledged compaction named
        self.compact_asked = 0
        self._progress = threading.Condition()
        self._acked = 0
        self._over = False

    def tick(self) -> int:
        return next(self.clock)

    def note_ack(self) -> None:
        with self._progress:
            self._acked += 1
            self._progress.notify_all()

    def end(self) -> None:
        """Nobody need wait for more."""
        with self._progress:
            self._over = True
            self._progress.notify_all()

    def wait_acks(self, count: int, timeout: float) -> bool:
        """Wait until ``count`` operations of this epoch are acknowledged."""
        with self._progress:
            self._progress.wait_for(lambda: self._acked >= count or self._over, timeout)
            return self._acked >= count

    @property
    def acked(self) -> int:
        return self._acked
