"""What is due when, for many things of which most are put off before their time comes."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from kvorum.types import LeaseID

SLACK: Final = 64


class DueQueue:
    """Lease ids by time; an id has one time, or none.

    A heap whose outdated entries stay until they come up, or until they are more than half of it:
    then it is built anew, so that its size is bounded by that of what is really in it.
    """

    __slots__ = ("_at", "_heap")

    def __init__(self) -> None:
        self._at: dict[LeaseID, float] = {}
        self._heap: list[tuple[float, LeaseID]] = []

    def __len__(self) -> int:
        return len(self._at)

    @property
    def heap_size(self) -> int:
        """Entries in memory, outdated ones too; at most ``2 * len(self) + SLACK``."""
        return len(self._heap)

    def set(self, id: LeaseID, at: float) -> None:
        """Give an id a time, in place of the one it has."""
        self._at[id] = at
        heappush(self._heap, (at, id))
        if len(self._heap) > 2 * len(self._at) + SLACK:
            self._rebuild()

    def discard(self, id: LeaseID) -> None:
        """Take out an id, if it is in."""
        if self._at.pop(id, None) is not None and len(self._heap) > 2 * len(self._at) + SLACK:
            self._rebuild()

    def pop(self, now: float) -> LeaseID | None:
        """Take out the id with the earliest time, if that is not after ``now``."""
        heap, at = self._heap, self._at
        while heap and heap[0][0] <= now:
            time, id = heappop(heap)
            if at.get(id) == time:
                del at[id]
                return id
        return None

    def reset(self, times: dict[LeaseID, float] | None = None) -> None:
        """Replace everything by ``times``, which now belongs to the queue."""
        self._at = {} if times is None else times
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(at, id) for id, at in self._at.items()]
        heapify(self._heap)
