"""Deadlines of many calls with one timer: slots of time, emptied as it passes.

The clock is passed in. A call leaves its slot when it ends, so nothing outlives its call but empty
slots, and of those there are at most about 2,000: the longer a timeout, the coarser its slot.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final, Protocol

_TICKS: Final = 200  # a second: calls end at most 5 ms, or 1.6 % of their timeout, late
_FINE_BITS: Final = 7  # timeouts below 128 ticks get a slot for each tick


class Expiring(Protocol):
    """A call of either side; ``expire`` is called once its deadline has passed."""

    deadline: float | None
    slot: set[Any] | None

    def expire(self) -> None: ...


class Deadlines:
    """``on_armed(when)`` is called when the earliest slot becomes earlier."""

    __slots__ = ("_heap", "_on_armed", "_slots")

    def __init__(self, on_armed: Callable[[float], None]) -> None:
        self._slots: dict[int, set[Expiring]] = {}
        self._heap: list[int] = []
        self._on_armed = on_armed

    def add(self, call: Expiring, now: float, timeout: float) -> None:
        """Put the call into the first slot that ends after its deadline."""
        deadline = call.deadline = now + timeout
        coarse = max(0, int(timeout * _TICKS).bit_length() - _FINE_BITS)
        tick = ((int(deadline * _TICKS) >> coarse) + 1) << coarse
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = set()
            heappush(self._heap, tick)
            if self._heap[0] == tick:
                self._on_armed(tick / _TICKS)
        slot.add(call)
        call.slot = slot

    @property
    def next_due(self) -> float | None:
        return self._heap[0] / _TICKS if self._heap else None

    def expire(self, now: float) -> list[Expiring]:
        """The calls whose time is over, earliest first."""
        heap = self._heap
        late: list[Expiring] = []
        while heap and heap[0] <= now * _TICKS:
            late += self._slots.pop(heappop(heap))
        return late
