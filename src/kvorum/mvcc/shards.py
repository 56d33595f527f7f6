"""Large sets of revisions that are built and used up bit by bit.

A Python set of a million members stops everything for tens of milliseconds each time it grows.
Revisions are therefore kept in shards of 256 main revisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from heapq import heapify, heappop
from typing import Final

from kvorum.types import RevKey

SHARD_BYTES: Final = 7


class RevShards:
    """A collection of revisions."""

    def __init__(self) -> None:
        self._shards: dict[bytes, list[RevKey]] = {}

    def add(self, revs: Iterable[RevKey]) -> None:
        shards = self._shards
        for rev in revs:
            name = rev[:SHARD_BYTES]
            shard = shards.get(name)
            if shard is None:
                shards[name] = [rev]
            else:
                shard.append(rev)

    def near(self, rev: bytes) -> Set[bytes]:
        """All members with the same first bytes as `rev`."""
        return set(self._shards.get(rev[:SHARD_BYTES], ()))

    def take_near(self, rev: bytes) -> Set[bytes]:
        """The same, for the last time: they are taken out, so that a large collection is not
        freed all at once."""
        return set(self._shards.pop(rev[:SHARD_BYTES], ()))

    def drain(self, size: int) -> Iterator[list[RevKey]]:
        """Take all members out, ascending, in lists of `size`; the last may be shorter."""
        names = list(self._shards)
        heapify(names)
        batch: list[RevKey] = []
        while names:
            batch += sorted(self._shards.pop(heappop(names)))
            full = len(batch) - len(batch) % size
            for at in range(0, full, size):
                yield batch[at : at + size]
            del batch[:full]
        if batch:
            yield batch
