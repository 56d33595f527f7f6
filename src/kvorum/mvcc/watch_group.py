"""Watchers by what they watch: which of them does a change concern?"""

from __future__ import annotations

from collections.abc import Sequence

from kvorum.mvcc.watch_intervals import IntervalMap
from kvorum.mvcc.watch_types import Change, Watcher


class Spot:
    """A watched key or range, with its watchers.

    ``pending`` gathers the places, in a batch of changes, of those that happened here; it is empty
    between batches.
    """

    __slots__ = ("crowds", "end", "key", "pending")

    def __init__(self, key: bytes, end: bytes | None) -> None:
        self.key = key
        self.end = end
        self.crowds: list[Crowd] = []
        self.pending: list[int] = []

    def crowd(self, kind: int) -> Crowd:
        """The crowd of a kind, made if need be; there are few kinds, most often one."""
        for crowd in self.crowds:
            if crowd.kind == kind:
                return crowd
        crowd = Crowd(self, kind)
        self.crowds.append(crowd)
        return crowd


class Crowd:
    """The watchers of one spot and one kind: all of them get the same events, as the same bytes.

    ``sent_rev`` is the revision of the last response with events that went to all of them.
    """

    __slots__ = ("kind", "sent_rev", "spot", "watchers")

    def __init__(self, spot: Spot, kind: int) -> None:
        self.spot = spot
        self.kind = kind
        self.sent_rev = 0
        self.watchers: dict[Watcher, None] = {}


class WatcherGroup:
    """A set of watchers, found by key: a dict for watched keys, an interval map for ranges."""

    __slots__ = ("_keys", "_ranges", "_tree", "size")

    def __init__(self) -> None:
        self._keys: dict[bytes, Spot] = {}
        self._ranges: dict[tuple[bytes, bytes], Spot] = {}
        self._tree: IntervalMap[Spot] = IntervalMap()
        self.size = 0

    def add(self, watcher: Watcher) -> None:
        assert watcher.crowd is None, f"watch {watcher.id} is in a group already"
        crowd = self._spot(watcher.key, watcher.end).crowd(watcher.kind)
        crowd.watchers[watcher] = None
        watcher.crowd = crowd
        self.size += 1

    def _spot(self, key: bytes, end: bytes | None) -> Spot:
        spot = self._keys.get(key) if end is None else self._ranges.get((key, end))
        if spot is None:
            spot = Spot(key, end)
            if end is None:
                self._keys[key] = spot
            else:
                self._ranges[key, end] = spot
                self._tree.add(key, end, spot)
        return spot

    def remove(self, watcher: Watcher) -> None:
        crowd = watcher.crowd
        assert crowd is not None, f"watch {watcher.id} is in no group"
        del crowd.watchers[watcher]
        watcher.crowd = None
        self.size -= 1
        if not crowd.watchers:
            crowd.spot.crowds.remove(crowd)
            if not crowd.spot.crowds:
                self._drop(crowd.spot)

    def _drop(self, spot: Spot) -> None:
        if spot.end is None:
            del self._keys[spot.key]
        else:
            del self._ranges[spot.key, spot.end]
            self._tree.remove(spot.key, spot.end)

    def watchers(self) -> list[Watcher]:
        """All of them, those of keys first, in the order in which their spots were made."""
        spots = (*self._keys.values(), *self._ranges.values())
        return [w for spot in spots for crowd in spot.crowds for w in crowd.watchers]

    def match(self, changes: Sequence[Change]) -> list[Spot]:
        """Fill ``pending`` of every spot that ``changes`` touch, and return these spots in the
        order in which they were first touched. The caller empties ``pending``."""
        touched: list[Spot] = []
        of_key = self._keys.get
        stab = self._tree.stab if self._ranges else None
        for i, change in enumerate(changes):
            key = change[1]
            spot = of_key(key)
            if spot is not None:
                if not spot.pending:
                    touched.append(spot)
                spot.pending.append(i)
            if stab is not None:
                for spot in stab(key):
                    if not spot.pending:
                        touched.append(spot)
                    spot.pending.append(i)
        return touched
