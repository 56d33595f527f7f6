"""When a watcher's progress notice is due."""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Final

from kvorum.mvcc.watch_types import Watcher

LANES: Final = 16


class ProgressClock:
    """Watchers with a progress notice every interval, lengthened by up to a tenth at random.

    The extra, as in etcd, keeps watches that were created together from getting their notices
    together. Here it comes in steps: all watchers of one lane have the same period, so that a lane
    is a queue, and adding, removing and finding what is due cost the same however many there are.
    Times are monotonic seconds.
    """

    __slots__ = ("_lanes", "_periods", "_random")

    def __init__(self, interval: float, rng: random.Random) -> None:
        self._lanes: list[OrderedDict[Watcher, float]] = [OrderedDict() for _ in range(LANES)]
        self._periods = [interval * (1 + lane / (10 * LANES)) for lane in range(LANES)]
        self._random = rng

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def add(self, watcher: Watcher, now: float) -> None:
        lane = watcher.lane = self._random.randrange(LANES)
        self._lanes[lane][watcher] = now + self._periods[lane]

    def remove(self, watcher: Watcher) -> None:
        del self._lanes[watcher.lane][watcher]
        watcher.lane = -1

    def due(self, now: float, most: int) -> list[Watcher]:
        """Watchers whose notice is due, at most ``most``; their next is due a period from now."""
        found: list[Watcher] = []
        for lane, period in zip(self._lanes, self._periods, strict=True):
            while lane and len(found) < most:
                watcher = next(iter(lane))
                if lane[watcher] > now:
                    break
                lane.move_to_end(watcher)
                lane[watcher] = now + period
                found.append(watcher)
        return found
