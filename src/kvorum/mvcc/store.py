"""The store: every revision of every key, written and read through the index.

A transaction has one main revision, one more than the last, if it changed anything; its changes
are numbered by sub revisions in the order of execution. Nothing here blocks or waits: values that
are not in memory come from LMDB's map.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol

from kvorum import errors, failpoint
from kvorum.backend import Backend, Bucket, ViewLostError
from kvorum.mvcc.compaction import Compaction
from kvorum.mvcc.hash import KeepScan, KeyValueHash, hash_records
from kvorum.mvcc.index import Index
from kvorum.mvcc.kv import encode, encode_tombstone, key_of, without_value
from kvorum.mvcc.restore import FINISHED, SCHEDULED, restore_index
from kvorum.mvcc.revision import (
    SEPARATOR,
    TOMBSTONE_MARK,
    before,
    pack_rev,
    rev_key,
)
from kvorum.types import LeaseID, Revision, RevKey

Change = tuple[RevKey, bytes, bytes, RevKey | None]
"""(revision, user key, record, revision of the pair before or None). The record of a delete has
the key alone."""

MAX_HASHES: Final = 10
NO_COMPACTION: Final = Revision(-1)
"""compact_rev of a store that was never compacted."""


class LeaseAttacher(Protocol):
    """Who keeps account of which keys a lease has."""

    def attach(self, lease: LeaseID, key: bytes) -> None:
        """The key was put with this lease; it may have had another, or this one."""

    def detach(self, key: bytes) -> None:
        """The key's pair is gone; it may have had a lease or not."""


class NoLeases:
    """Stands in where there are no leases."""

    def attach(self, lease: LeaseID, key: bytes) -> None: ...

    def detach(self, key: bytes) -> None: ...


class RangeResult:
    """``kvs``: records in key order, no more than the limit. ``count``: all keys in the range
    whatever the limit. ``rev``: the store's revision, for the response header."""

    __slots__ = ("count", "kvs", "rev")

    def __init__(self, kvs: list[bytes], count: int, rev: int) -> None:
        self.kvs = kvs
        self.count = count
        self.rev = rev


class Store:
    """``rev`` is the newest revision, 1 in an empty store; ``compact_rev`` the last one compacted.

    ``changes`` gathers what was written, for the watchers; the owner takes it and clears it.
    """

    def __init__(self, backend: Backend, leases: LeaseAttacher | None = None) -> None:
        self.backend = backend
        self.leases: LeaseAttacher = NoLeases() if leases is None else leases
        self.changes: list[Change] = []
        self.compactions: deque[Compaction] = deque()
        """Those not yet carried out, in order. Whoever runs them takes them out."""
        self.hashes: list[KeyValueHash] = []
        self._reset()

    def _reset(self) -> None:
        self.rev = Revision(1)
        self.compact_rev = NO_COMPACTION
        self.index = Index(self.record)
        self.changes.clear()
        for job in self.compactions:
            job.abandoned = True
        self.compactions = deque()  # whoever runs the old ones keeps the old queue
        self.scans: set[KeepScan] = set()
        self.writing = False

    def restore(self) -> None:
        """Take over what the backend holds, at the start or after its content was replaced. The
        leases must be there already: keys are attached to them.

        A compaction that had not finished is scheduled again.
        """
        self._reset()
        found = restore_index(self.backend, self.index)
        self.rev = Revision(found.rev)
        self.compact_rev = Revision(found.finished)
        for key, lease in found.leased.items():
            with suppress(errors.LeaseNotFound):  # etcd starts with such a key too
                self.leases.attach(LeaseID(lease), key)
        if found.scheduled > max(found.finished, 0):  # etcd does not resume one at 0
            self.compact(found.scheduled)

    def record(self, rev: RevKey) -> bytes:
        """The record of a revision that the index knows."""
        record = self.backend.get_revision(rev)
        assert record is not None, f"revision {rev.hex()} is in the index and not in the backend"
        return record

    # Writing

    def put(self, key: bytes, value: bytes, lease: LeaseID) -> Revision:
        """A put as a transaction of its own; its revision."""
        main: Revision = self.rev + 1  # type: ignore[assignment] # Revision() would be a call
        self._put(main, 0, key, value, lease)
        self.rev = main
        return main

    def _put(self, main: int, sub: int, key: bytes, value: bytes, lease: LeaseID) -> None:
        rev = pack_rev(main, SEPARATOR, sub)
        entry = self.index.setdefault(key, rev)
        if entry is rev:
            record = encode(key, main, main, 1, value, lease)
            previous = None
        else:
            create, version, previous = self.index.overwrite(key, entry, rev, main)
            record = encode(key, create, main, version, value, lease)
        self.backend.put_revision(rev, record)
        if lease:
            self.leases.attach(lease, key)
        elif previous is not None:
            self.leases.detach(key)
        self.changes.append((rev, key, record, previous))

    def _delete(self, main: int, sub: int, key: bytes, previous: RevKey) -> None:
        rev = RevKey(pack_rev(main, SEPARATOR, sub) + TOMBSTONE_MARK)
        record = encode_tombstone(key)
        self.index.delete(key, rev)
        self.backend.put_revision(rev, record)
        self.leases.detach(key)
        self.changes.append((rev, key, record, previous))

    def write(self) -> WriteTxn:
        """Begin a transaction. There is one at a time, ended before anything else is done."""
        return WriteTxn(self)

    # Reading

    def get(self, key: bytes) -> bytes | None:
        """The record of one key as it is now."""
        rev = self.index.live(key)
        return None if rev is None else self.backend.get_revision(rev)

    def range_kvs(self, key: bytes, end: bytes, *, limit: int = 0, rev: int = 0) -> RangeResult:
        """The records of a range at a revision (0 or less: now), at most `limit`
        (0 or less: all).

        Raises:
            errors.FutureRev, errors.Compacted: the revision is not there.
        """
        return self.range_from(self.rev, key, end, limit, rev)

    def range_keys(self, key: bytes, end: bytes, *, limit: int = 0, rev: int = 0) -> RangeResult:
        """The same with records that lack value and lease."""
        result = self.range_from(self.rev, key, end, limit, rev)
        result.kvs = [without_value(kv) for kv in result.kvs]
        return result

    def count(self, key: bytes, end: bytes, rev: int = 0) -> RangeResult:
        """The same with the count alone: no record is read."""
        return self.count_from(self.rev, key, end, rev)

    def range_from(
        self, current: Revision, key: bytes, end: bytes, limit: int, rev: int
    ) -> RangeResult:
        """A range as seen when the newest revision is `current`."""
        if not end and rev <= 0:
            found = self.index.live(key)
            kvs = [] if found is None else [self.record(found)]
            return RangeResult(kvs, len(kvs), current)
        main = self._readable(current, rev)
        if main == current:
            revs = self.index.range(key, end, limit)
            full = 0 < limit == len(revs)
            count = self.index.count(key, end) if full else len(revs)
        else:
            revs = self.index.range_at(key, end, main, limit)
            full = 0 < limit == len(revs)
            count = self.index.count_at(key, end, main) if full else len(revs)
        kvs = self.backend.get_revisions(revs)
        return RangeResult(kvs, count, current)

    def count_from(self, current: Revision, key: bytes, end: bytes, rev: int) -> RangeResult:
        """A count as seen when the newest revision is `current`."""
        main = self._readable(current, rev)
        if main == current:
            return RangeResult([], self.index.count(key, end), current)
        return RangeResult([], self.index.count_at(key, end, main), current)

    def _readable(self, current: Revision, rev: int) -> int:
        """The main revision to read at."""
        if rev > current:
            raise errors.FutureRev
        if rev <= 0:
            return current
        if rev < self.compact_rev:
            raise errors.Compacted
        return rev

    def kv_at(self, key: bytes, rev: int) -> bytes | None:
        """The record of a key as of a revision; None if there is none, or it was compacted."""
        if rev < self.compact_rev:
            return None
        found = self.index.live_at(key, rev)
        return None if found is None else self.record(found)

    def kv_by_rev(self, rev: RevKey) -> bytes | None:
        """The record of a revision, None if it was deleted by a compaction."""
        return self.backend.get_revision(rev)

    def history(self, first: int, last: int) -> Iterator[Change]:
        """The changes of the revisions first..last in order; the revision before is not given.

        To be consumed before anything is written or the loop goes on.
        """
        for rev, record in self.backend.scan(Bucket.KEY, before(first), before(last + 1)):
            yield RevKey(rev), key_of(record), record, None

    # Compaction

    def compact(self, rev: int) -> Compaction:
        """Make everything before `rev` unreadable at once, and schedule its physical deletion.

        Raises:
            errors.Compacted: `rev` was compacted already.
            errors.FutureRev: `rev` is yet to come.
        """
        if rev <= self.compact_rev:
            raise errors.Compacted
        if rev > self.rev:
            raise errors.FutureRev
        backend = self.backend
        complete = backend.get(Bucket.META, SCHEDULED) == backend.get(Bucket.META, FINISHED)
        job = Compaction(self, rev, self.compact_rev, hashed=complete)
        self.compact_rev = Revision(rev)
        backend.put(Bucket.META, SCHEDULED, rev_key(rev))
        if failpoint.active:
            failpoint.hit("compactBeforeCommitScheduledCompact")
        backend.commit_soon()
        if failpoint.active:
            failpoint.hit("compactAfterCommitScheduledCompact")
        self.compactions.append(job)
        return job

    # Hashes

    def keep_hash(self, value: KeyValueHash) -> None:
        """Remember the hash of a compaction; the newest ten are."""
        self.hashes = sorted([*self.hashes, value], key=lambda h: h.rev)[-MAX_HASHES:]

    async def hash_kv(self, rev: int = 0) -> tuple[KeyValueHash, Revision]:
        """The hash of all revisions up to `rev` (0: now), and the store's revision.

        That of a compaction is answered from memory, with the compaction revision before it.

        Raises:
            errors.Compacted: `rev` is before the compaction revision.
            errors.FutureRev: `rev` is yet to come.
        """
        while True:
            try:
                return await self._hash_kv(rev)
            except ViewLostError:
                continue  # the file had to grow, which it does by doubling

    async def _hash_kv(self, rev: int) -> tuple[KeyValueHash, Revision]:
        for stored in self.hashes:
            if stored.rev == rev:
                return stored, self.rev
        if rev > self.rev:
            raise errors.FutureRev
        while True:
            current = self.rev
            await self.backend.commit()
            at = rev if rev > 0 else current
            if at >= self.compact_rev:
                break
            if rev > 0:
                raise errors.Compacted
        # View and compaction revision are taken together: deletions that the view shows belong to
        # compactions at or before this one.
        backend = self.backend
        scan = KeepScan(self.index, at, self.compact_rev)
        self.scans.add(scan)
        try:
            with backend.read_view() as view:
                while not scan.done:
                    scan.step()
                    await backend.pause(0)
                return await backend.in_thread(lambda: hash_records(view, scan.spec())), current
        finally:
            self.scans.discard(scan)


class WriteTxn:
    """A write transaction: it sees its own changes, and everybody does as soon as it has ended."""

    __slots__ = ("_begin", "_first", "_store", "_sub")

    def __init__(self, store: Store) -> None:
        assert not store.writing, "a transaction inside a transaction"
        store.writing = True
        self._store = store
        self._begin = store.rev
        self._first = len(store.changes)
        self._sub = 0

    @property
    def rev(self) -> Revision:
        """What the header of a response shows: one more once something has changed."""
        return Revision(self._begin + 1) if self._sub else self._begin

    @property
    def changes(self) -> list[Change]:
        """What was changed so far."""
        return self._store.changes[self._first :]

    def put(self, key: bytes, value: bytes, lease: LeaseID) -> Revision:
        """Set a key; the revision of the transaction."""
        main = self._begin + 1
        self._store._put(main, self._sub, key, value, lease)
        self._sub += 1
        return Revision(main)

    def delete_range(self, key: bytes, end: bytes) -> int:
        """Delete the live keys of a range, in key order; how many there were."""
        store, main = self._store, self._begin + 1
        doomed = store.index.live_items(key, end)
        for user_key, previous in doomed:
            store._delete(main, self._sub, user_key, previous)
            self._sub += 1
        return len(doomed)

    def range_kvs(self, key: bytes, end: bytes, *, limit: int = 0, rev: int = 0) -> RangeResult:
        """As the store's; the newest revision is the transaction's own."""
        return self._store.range_from(self.rev, key, end, limit, rev)

    def range_keys(self, key: bytes, end: bytes, *, limit: int = 0, rev: int = 0) -> RangeResult:
        """As the store's."""
        result = self._store.range_from(self.rev, key, end, limit, rev)
        result.kvs = [without_value(kv) for kv in result.kvs]
        return result

    def count(self, key: bytes, end: bytes, rev: int = 0) -> RangeResult:
        """As the store's."""
        return self._store.count_from(self.rev, key, end, rev)

    def end(self) -> Revision:
        """Finish; the store's revision from now on."""
        store = self._store
        assert store.writing, "the transaction has ended"
        assert store.rev == self._begin, (store.rev, self._begin)
        store.writing = False
        store.rev = self.rev
        return store.rev
