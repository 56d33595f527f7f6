"""Watchers that wait at a revision, and the slices of history with which they catch up."""

from __future__ import annotations

from collections.abc import Iterator

from BTrees.LOBTree import LOBTree

from kvorum.mvcc.watch_group import WatcherGroup
from kvorum.mvcc.watch_types import Change, Watcher, WatchLimits
from kvorum.types import Revision


class Positions:
    """Watchers in the order of their ``next_rev``."""

    __slots__ = ("_at", "size")

    def __init__(self) -> None:
        self._at = LOBTree()  # next_rev -> dict of watchers, never empty
        self.size = 0

    def add(self, watcher: Watcher) -> None:
        at = self._at.get(watcher.next_rev)
        if at is None:
            at = self._at[watcher.next_rev] = {}
        at[watcher] = None
        self.size += 1

    def remove(self, watcher: Watcher) -> None:
        at = self._at[watcher.next_rev]
        del at[watcher]
        if not at:
            del self._at[watcher.next_rev]
        self.size -= 1

    def lowest(self) -> int:
        return int(self._at.minKey())

    def highest(self) -> int:
        return int(self._at.maxKey())

    def between(self, first: int, last: int, *, most: int) -> list[Watcher]:
        """Watchers at first..last, both included, the lowest first; at most ``most``."""
        found: list[Watcher] = []
        for at in self._at.values(first, last):
            if len(found) + len(at) >= most:
                found.extend(list(at)[: most - len(found)])
                break
            found.extend(at)
        return found


class Laggards:
    """Watchers that read history, each from its ``next_rev`` on.

    They go forward together: a step reads one slice of history for all watchers within it, so that
    those behind catch up with those before them, and many clients that come back after a break cost
    one pass. Every second step goes to the foremost watchers if they are within a slice of the
    present: a short lapse must not wait for somebody's hour of history.
    """

    __slots__ = ("_at", "_turn", "group")

    def __init__(self) -> None:
        self.group = WatcherGroup()
        self._at = Positions()
        self._turn = False

    @property
    def size(self) -> int:
        return self.group.size

    def add(self, watcher: Watcher) -> None:
        self.group.add(watcher)
        self._at.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        self._at.remove(watcher)
        self.group.remove(watcher)

    def advance(self, watcher: Watcher, next_rev: int) -> None:
        assert next_rev > watcher.next_rev, f"from {watcher.next_rev} back to {next_rev}"
        self._at.remove(watcher)
        watcher.next_rev = next_rev
        self._at.add(watcher)

    def lowest(self) -> int:
        return self._at.lowest()

    def next_slice(self, present: int, reach: int) -> int:
        """The revision at which the next step is to start."""
        self._turn = not self._turn
        if self._turn:
            highest = self._at.highest()
            if highest > present - reach:
                return highest
        return self._at.lowest()

    def between(self, first: int, last: int, *, most: int) -> list[Watcher]:
        return self._at.between(first, last, most=most)


def read_slice(
    history: Iterator[Change], last: Revision, limits: WatchLimits
) -> tuple[list[Change], Revision]:
    """Changes up to the limits, whole revisions only, and the revision up to which they go."""
    changes: list[Change] = []
    room, full_at = limits.slice_bytes, b""
    for change in history:
        if full_at and change[0][:8] != full_at:
            return changes, Revision(int.from_bytes(full_at, "big"))
        changes.append(change)
        room -= len(change[2])
        if room <= 0 or len(changes) >= limits.slice_changes:
            full_at = change[0][:8]
    return changes, last
