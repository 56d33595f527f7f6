"""Physical compaction: dropping from index and backend what nobody can read any more.

The work is done in small pieces between other work, in three phases:

1. The index is gone through in slices; what each key need not keep is taken out and remembered.
2. The compaction's hash is computed in a thread, over a view from before any deletion.
3. What was remembered is deleted in revision order, a batch and a commit at a time. The last batch
   carries the mark that the compaction has finished.

A crash at any point loses nothing: the mark of the scheduled revision is on disk first, and the
next start finds the two marks different and does all of it again.

Unlike etcd, which reads every record up to the revision to see which ones to delete, the third
phase touches only those that go. A batch is a thousand deletions, where etcd's is a thousand
records looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from kvorum import failpoint
from kvorum.backend import Bucket, ReadView
from kvorum.mvcc.hash import HashSpec, KeyValueHash, hash_committed, hash_records
from kvorum.mvcc.history import HEAD, SLOT, History, revisions
from kvorum.mvcc.index import Entry
from kvorum.mvcc.restore import FINISHED
from kvorum.mvcc.revision import before, rev_key
from kvorum.mvcc.shards import RevShards
from kvorum.types import RevKey

if TYPE_CHECKING:
    from kvorum.mvcc.store import Store

BATCH_LIMIT: Final = 1000
"""Deletions between two commits (etcd's --compaction-batch-limit)."""
SLEEP: Final = 0.01
"""Seconds between two batches (etcd's --compaction-sleep-interval)."""
INDEX_SLICE: Final = 1000
"""Index entries in one step, or revisions taken out of them: a millisecond or two."""


class Compaction:
    """One compaction at `rev`. ``deleted`` counts the records removed; ``done`` says that all of
    it has happened, ``abandoned`` that it never will, since the store was replaced."""

    def __init__(self, store: Store, rev: int, previous: int, *, hashed: bool) -> None:
        """`previous` is the compaction revision before, -1 for none; `hashed` says that it has
        finished, so that this one's hash is worth keeping."""
        self.rev = rev
        self.deleted = 0
        self.done = False
        self.abandoned = False
        self._store = store
        self._previous = previous
        self._hashed = hashed
        self._position: bytes | None = None
        self._forgotten: list[tuple[History, int]] = []
        self._gone = RevShards()
        self._any_kept = False
        self._indexed = False
        self._batches: Iterator[list[RevKey]] | None = None

    async def run(self, batch_limit: int = BATCH_LIMIT, sleep: float = SLEEP) -> None:
        """Do all of it, with pauses. To be run by one task, one compaction after the other."""
        backend = self._store.backend
        while not self.index_step():
            await backend.pause(0)
        if self._hashed and not self.abandoned:
            value = await hash_committed(backend, self.hash)
            if not self.abandoned:
                self._store.keep_hash(value)
        while not self.delete_step(batch_limit):
            if failpoint.active:
                failpoint.hit("compactBeforeCommitBatch")
            await backend.commit()
            if failpoint.active:
                failpoint.hit("compactAfterCommitBatch")
            await backend.pause(sleep)

    def index_step(self) -> bool:
        """Compact a slice of the index; True when there is no more."""
        if self.abandoned:
            return True
        if self._forgotten:
            self._remember()
        elif not self._indexed:
            self._compact_slice()
        return self._indexed and not self._forgotten

    def _compact_slice(self) -> None:
        store = self._store
        entries = store.index.slice_after(self._position, INDEX_SLICE)
        for scan in store.scans:
            if scan.rev < self.rev:
                scan.see(entries)
        self._compact_entries(entries)
        if entries:
            self._position = entries[-1][0]
        if len(entries) < INDEX_SLICE:
            self._indexed = True
            self._gone.add(store.index.take_orphans(before(self.rev + 1)))

    def _compact_entries(self, entries: list[tuple[bytes, Entry]]) -> None:
        index, bound, rev = self._store.index, before(self.rev + 1), self.rev
        for key, entry in entries:
            if isinstance(entry, History):
                cut, kept = index.compact(key, entry, rev)
                if cut > HEAD:
                    self._forgotten.append((entry, cut))
                self._any_kept = self._any_kept or kept
            elif entry < bound:
                self._any_kept = True

    def _remember(self) -> None:
        """A key may have millions of revisions: they too are taken in pieces, from the end."""
        room = INDEX_SLICE
        while self._forgotten and room > 0:
            history, end = self._forgotten.pop()
            start = max(HEAD, end - room * SLOT)
            self._gone.add(revisions(history, start, end))
            room -= (end - start) // SLOT
            if start > HEAD:
                self._forgotten.append((history, start))

    def hash(self, view: ReadView) -> KeyValueHash:
        """The hash of what this compaction covers, from a view of before its deletions that has
        everything up to ``rev``. For a thread, after the index phase."""
        gone = self._gone if self._any_kept else None
        return hash_records(view, HashSpec(self.rev, self._previous, gone=gone))

    def delete_step(self, batch_limit: int = BATCH_LIMIT) -> bool:
        """Delete a batch; True when that was the last one, with the mark."""
        if self.abandoned:
            return True
        if failpoint.active:
            failpoint.hit("compactAfterAcquiredBatchTxLock")
        if self._batches is None:
            self._batches = self._gone.drain(batch_limit)
        batch = next(self._batches, None)
        backend = self._store.backend
        if batch is not None:
            backend.delete_revisions(batch)
            self.deleted += len(batch)
            return False
        if failpoint.active:
            failpoint.hit("compactBeforeSetFinishedCompact")
        backend.put(Bucket.META, FINISHED, rev_key(self.rev))
        if failpoint.active:
            failpoint.hit("compactAfterSetFinishedCompact")
        self.done = True
        return True
