"""The operations that may come next, in a search that takes and gives back.

Lowe's list: calls and returns by time, doubly linked. Taking an operation unlinks its two ends;
giving back, in the opposite order, links them again where they were. Those that may come next are
the calls before the first return.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise


class InFlight:
    """Operations by number; ``times`` are their starts and ends. Iterating gives those that may
    come next. ``taken`` has the bits of the taken ones, ``left`` counts the rest."""

    def __init__(self, times: Sequence[tuple[float, float]]) -> None:
        self.taken = 0
        self.left = len(times)
        self._ends = [end for _, end in times]
        # Node 2i + 1 is the call of i, 2i + 2 its return, 0 stands before all. At equal times calls
        # come first: the operations overlap.
        order = sorted(
            [(start, 0, 2 * i + 1) for i, (start, _) in enumerate(times)]
            + [(end, 1, 2 * i + 2) for i, (_, end) in enumerate(times)]
        )
        nodes = [0, *(node for _, _, node in order), 2 * len(times) + 1]
        self._stop = nodes[-1]
        self._next = [0] * len(nodes)
        self._prev = [0] * len(nodes)
        for before, after in pairwise(nodes):
            self._next[before], self._prev[after] = after, before

    def __iter__(self) -> Iterator[int]:
        node = self._next[0]
        while node & 1 and node != self._stop:
            yield node >> 1
            node = self._next[node]

    def deadline(self) -> float:
        """When the first of those that are left must have happened."""
        node = self._next[0]
        while node & 1 and node != self._stop:
            node = self._next[node]
        return math.inf if node == self._stop else self._ends[(node >> 1) - 1]

    def take(self, number: int) -> None:
        self.taken |= 1 << number
        self.left -= 1
        for node in (2 * number + 1, 2 * number + 2):
            before, after = self._prev[node], self._next[node]
            self._next[before], self._prev[after] = after, before

    def give_back(self, number: int) -> None:
        """Undo the last `take` that is not undone, which must have been of this number."""
        self.taken &= ~(1 << number)
        self.left += 1
        for node in (2 * number + 2, 2 * number + 1):
            before, after = self._prev[node], self._next[node]
            self._next[before] = self._prev[after] = node
