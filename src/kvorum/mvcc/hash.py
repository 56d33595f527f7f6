"""HashKV: a checksum over all revisions up to one, equal on all members whatever their progress.

It covers the records up to the revision asked for, in revision order. Of those that a compaction
has made unreadable only what a compaction at that revision would keep counts, so that it makes no
difference how much is deleted already. A tombstone at the compaction revision does not count,
since older versions of etcd delete it and newer ones keep it. If nothing at all is to be kept,
everything old counts: a quirk of etcd's, and members have to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Final, NamedTuple

import google_crc32c

from kvorum.backend import Backend, Bucket, ReadView, ViewLostError
from kvorum.backend.bucket import Item
from kvorum.backend.hash import CHUNK, extend, politely
from kvorum.mvcc.history import kept_at
from kvorum.mvcc.index import Entry, Index
from kvorum.mvcc.revision import before, is_tombstone, main_of
from kvorum.mvcc.shards import SHARD_BYTES, RevShards

KEEP_SLICE: Final = 1000
"""Index entries looked at in one step: about half a millisecond."""


class KeyValueHash(NamedTuple):
    """A hash with the revisions it was taken at; ``compact_rev`` is -1 if never compacted."""

    hash: int
    compact_rev: int
    rev: int


class HashSpec(NamedTuple):
    """Which of the revisions up to ``compact_rev`` count: those in ``kept``, or those not in
    ``gone``; all of them if both are None."""

    rev: int
    compact_rev: int
    kept: RevShards | None = None
    gone: RevShards | None = None


def hash_records(view: ReadView, spec: HashSpec) -> KeyValueHash:
    """The checksum. For a thread; everything up to ``spec.rev`` must be in the view. It uses up
    ``spec.kept``."""
    crc = int(google_crc32c.value(Bucket.KEY.encode()))
    border = before(spec.compact_rev + 1)
    counting = _Counting(spec)
    for chunk in politely(view.chunks(Bucket.KEY, CHUNK, b"", border)):
        crc = extend(crc, counting.counted(chunk))
    for chunk in politely(view.chunks(Bucket.KEY, CHUNK, border, before(spec.rev + 1))):
        crc = extend(crc, chunk)
    return KeyValueHash(crc, spec.compact_rev, spec.rev)


async def hash_committed(
    backend: Backend, compute: Callable[[ReadView], KeyValueHash]
) -> KeyValueHash:
    """Commit, and run `compute` in a thread over a view of that. A view that was lost because the
    file had to grow is replaced by a new one."""
    while True:
        await backend.commit()
        try:
            with backend.read_view() as view:
                return await backend.in_thread(lambda view=view: compute(view))  # type: ignore[misc]
        except ViewLostError:
            continue


class _Counting:
    """Tells which of the old records count. It is shown all of them, in order."""

    def __init__(self, spec: HashSpec) -> None:
        self._spec = spec
        self._shard = b""
        self._members: Set[bytes] = frozenset()

    def counted(self, chunk: list[Item]) -> list[Item]:
        spec = self._spec
        if spec.kept is not None:
            chunk = [item for item in chunk if item[0] in self._near(spec.kept, item[0])]
        elif spec.gone is not None:
            chunk = [item for item in chunk if item[0] not in self._near(spec.gone, item[0])]
        at = spec.compact_rev
        return [item for item in chunk if not (is_tombstone(item[0]) and main_of(item[0]) == at)]

    def _near(self, listed: RevShards, rev: bytes) -> Set[bytes]:
        """The listed revisions in the shard of this one."""
        if rev[:SHARD_BYTES] != self._shard:
            self._shard = rev[:SHARD_BYTES]
            used_up = listed is self._spec.kept
            self._members = listed.take_near(rev) if used_up else listed.near(rev)
        return self._members


class KeepScan:
    """Finds what a compaction at `rev` would keep, of the revisions up to `compact_rev`, bit by
    bit while the index goes on changing.

    Puts, deletes and compactions at or below `rev` do not change the answer for any key. A later
    compaction does: before it gets to a slice of the index it has this scan look at it (`see`).
    """

    def __init__(self, index: Index, rev: int, compact_rev: int) -> None:
        self.rev = rev
        self._index = index
        self._bound = before(rev + 1)
        self._border = before(compact_rev + 1)
        self._compact_rev = compact_rev
        self._position: bytes | None = None
        self._kept = RevShards()
        self._any = False
        self.done = compact_rev < 0

    def step(self) -> None:
        """Look at the next few entries."""
        entries = self._index.slice_after(self._position, KEEP_SLICE)
        self._take(entries)
        self.done = self.done or len(entries) < KEEP_SLICE

    def see(self, entries: list[tuple[bytes, Entry]]) -> None:
        """Look at these now, unless they were looked at before."""
        if not self.done:
            position = self._position
            self._take([e for e in entries if position is None or e[0] > position])

    def _take(self, entries: list[tuple[bytes, Entry]]) -> None:
        if not entries:
            return
        bound, border, rev = self._bound, self._border, self.rev
        kept = []
        for _, entry in entries:
            if isinstance(entry, bytes):
                found = entry if entry < bound else None
            else:
                found = kept_at(entry, rev)
            if found is not None:
                self._any = True
                if found < border:
                    kept.append(found)
        self._kept.add(kept)
        self._position = entries[-1][0]

    def spec(self) -> HashSpec:
        """What to hash, once done."""
        assert self.done
        return HashSpec(self.rev, self._compact_rev, kept=self._kept if self._any else None)
