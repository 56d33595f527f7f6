"""The backend: etcd's buckets, with writes gathered in memory and committed in the background.

Every bucket has three layers, read from the top::

    overlay   written since the last commit began      (None: deleted)
    frozen    being written by the commit under way
    LMDB      committed

A commit moves the overlay to the frozen layer and writes that in one LMDB transaction in a thread
of its own. What the `pre_commit` hook puts (the consistent index) is in the same transaction, so
that a crash leaves a state which the raft log continues from exactly. There is one commit at a
time; when it is done the loop takes a new read transaction and drops the frozen layer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import lmdb

from kvorum import failpoint
from kvorum.backend.bucket import Bucket, Item, loaded_item, stored_key
from kvorum.backend.database import MAP_SIZE, Changes, Database, Sizes
from kvorum.backend.defrag import Defrag, remove_leftovers
from kvorum.backend.errors import BackendError, CommitError
from kvorum.backend.hash import HASH_SKIP, Skip, hash_view
from kvorum.backend.view import ReadView, stored_range, stored_revisions
from kvorum.backend.worker import Worker

FILE_NAME: Final = "kvorum.mdb"
BATCH_INTERVAL: Final = 0.1
BATCH_LIMIT: Final = 10_000
READ_THREADS: Final = 4
"""Hashes, copies and snapshots that run at once; more wait."""

T = TypeVar("T")
Observer = Callable[[str, float], None]
Batches = list[tuple[Bucket, Changes]]

_MISSING: Final = b"missing"  # told apart by identity


class _Layers:
    """A bucket's uncommitted writes, and its place in LMDB."""

    __slots__ = ("bucket", "db", "frozen", "overlay")

    def __init__(self, bucket: Bucket, db: lmdb._Database) -> None:
        self.bucket = bucket
        self.db = db
        self.overlay: dict[bytes, bytes | None] = {}
        self.frozen: dict[bytes, bytes | None] = {}

    def changes(self, lo: bytes, hi: bytes | None) -> dict[bytes, bytes | None]:
        """What is not committed of a range."""
        if not self.overlay and not self.frozen:
            return {}
        return {
            key: value
            for layer in (self.frozen, self.overlay)
            for key, value in layer.items()
            if key >= lo and (hi is None or key < hi)
        }


def _ignore(*_: Any) -> None:
    """The default of every hook."""


class Backend:
    """All methods are for the thread that made it (the loop's), except where said otherwise.

    Without a loop nothing commits by itself, and `commit_now` is the way: for tools.

    Hooks, to be set by the owner:
        pre_commit: called right before the writes of a commit are taken; it may put more.
        on_commit: called after each commit, when `size` may have changed.
        on_fatal: called once with a `CommitError`, after which nothing is committed any more.
        observe: called with a name (``commit``, ``defrag``, ``hash``) and seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_interval: float = BATCH_INTERVAL,
        batch_limit: int = BATCH_LIMIT,
        map_size: int = MAP_SIZE,
    ) -> None:
        """Open the file at `path`, and create it if it is not there.

        Raises:
            OpenError: or one of its subclasses, see `Database`.
        """
        self.path = path
        self.pre_commit: Callable[[], None] = _ignore
        self.on_commit: Callable[[], None] = _ignore
        self.on_fatal: Callable[[CommitError], None] = _ignore
        self.observe: Observer = _ignore
        self.pending_ops = 0
        self.commits = 0
        self.failure: BackendError | None = None
        self._loop = loop
        self._interval = batch_interval
        self._limit = batch_limit
        self._database = Database(path, map_size=map_size)
        remove_leftovers(path)
        self._layers = {name: _Layers(name, self._database.dbs[name]) for name in Bucket}
        self._key = self._layers[Bucket.KEY]
        self._worker = None if loop is None else Worker("kvorum-commit", loop, self._committed)
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="kvorum-backend")
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._committing = False
        self._held = False
        self._wanted = False
        self._waiting: list[asyncio.Future[None]] = []
        self._next_waiting: list[asyncio.Future[None]] = []
        self._batches: Batches = []
        self._started = 0.0
        self._defrag: Defrag | None = None
        self._begin_read()

    def _begin_read(self) -> None:
        self._txn = self._database.env.begin()
        self._get = self._txn.get

    # Writing

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        """Set a key. Raises ValueError for an empty one, which no bucket may have."""
        if not key:
            raise ValueError(f"empty key in bucket {bucket}")
        self._layers[bucket].overlay[key] = value  # type: ignore[index] # a Bucket is a str
        self._count(1)

    def delete(self, bucket: str, key: bytes) -> None:
        """Remove a key, if it is there."""
        self._layers[bucket].overlay[key] = None  # type: ignore[index]
        self._count(1)

    def put_revision(self, rev_key: bytes, record: bytes) -> None:
        """`put` to bucket ``key``, without the looking up: the hot path."""
        self._key.overlay[rev_key] = record
        self.pending_ops = pending = self.pending_ops + 1
        if pending == 1 or pending == self._limit:
            self._arm(pending)

    def delete_revisions(self, rev_keys: Iterable[bytes]) -> None:
        """Remove many from bucket ``key``."""
        gone = dict.fromkeys(rev_keys)
        self._key.overlay.update(gone)
        self._count(len(gone))

    def _count(self, ops: int) -> None:
        before = self.pending_ops
        self.pending_ops = before + ops
        if before == 0 or before < self._limit <= self.pending_ops:
            self._arm(self.pending_ops)

    def _arm(self, pending: int) -> None:
        """See to it that what is pending gets committed."""
        if pending >= self._limit:
            self.commit_soon()
        elif self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(self._interval, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.pending_ops:
            self._start_commit()

    # Reading

    def get(self, bucket: str, key: bytes) -> bytes | None:
        """The value of a key, None without."""
        layers = self._layers[bucket]  # type: ignore[index]
        value = layers.overlay.get(key, _MISSING)
        if value is _MISSING:
            value = layers.frozen.get(key, _MISSING)
            if value is _MISSING:
                return self._get_stored(layers, key)
        return value

    def _get_stored(self, layers: _Layers, key: bytes) -> bytes | None:
        if not key:
            return None
        place = stored_key(key)
        value = self._get(place, None, layers.db)
        return value if value is None or place is key else loaded_item(place, value)[1]

    def get_revision(self, rev_key: bytes) -> bytes | None:
        """`get` from bucket ``key``: the hot path."""
        layers = self._key
        value = layers.overlay.get(rev_key, _MISSING)
        if value is _MISSING:
            value = layers.frozen.get(rev_key, _MISSING)
            if value is _MISSING:
                return self._get(rev_key, None, layers.db)
        return value

    def get_revisions(self, rev_keys: Sequence[bytes]) -> list[bytes]:
        """Many from bucket ``key``, in the order given.

        Raises:
            BackendError: one is not there.
        """
        layers = self._key
        get, db, over, frozen = self._get, layers.db, layers.overlay, layers.frozen
        if not over and not frozen:
            found = [get(k, None, db) for k in rev_keys]
        else:
            found = [
                over[k] if k in over else frozen[k] if k in frozen else get(k, None, db)
                for k in rev_keys
            ]
        if None in found:
            missing = rev_keys[found.index(None)]
            raise BackendError(f"{self.path} has no revision {missing.hex()}")
        return cast(list[bytes], found)

    def get_many(self, bucket: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values of keys, in the order given."""
        return [self.get(bucket, key) for key in keys]

    def range(self, bucket: str, lo: bytes, hi: bytes | None, limit: int = 0) -> list[Item]:
        """Pairs with lo <= key < hi (None: to the end) in key order, `limit` of them (0: all)."""
        return list(islice(self.scan(bucket, lo, hi), limit or None))

    def scan(self, bucket: str, lo: bytes = b"", hi: bytes | None = None) -> Iterator[Item]:
        """The same one by one; to be consumed before anything is written or the loop goes on."""
        layers = self._layers[bucket]  # type: ignore[index]
        read = stored_revisions if layers is self._key else stored_range
        stored = read(self._txn, layers.db, lo, hi)
        changes = layers.changes(lo, hi)
        if not changes:
            return stored
        fresh = sorted((k, v) for k, v in changes.items() if v is not None)
        return merge((item for item in stored if item[0] not in changes), fresh)

    def read_view(self) -> ReadView:
        """What is committed now, for use in another thread. Await `commit` before, to have all.

        Raises:
            BackendError: there are too many views, or the backend is closed.
        """
        try:
            return ReadView(self._database)
        except lmdb.Error as error:
            raise BackendError(f"cannot begin a read of {self.path}: {error}") from error

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in one of the few threads for long reads."""
        assert self._loop is not None, "a backend without a loop has no threads"
        return await self._loop.run_in_executor(self._readers, work)

    async def pause(self, seconds: float) -> None:
        """Let the loop go on."""
        await asyncio.sleep(seconds)

    async def hash(self, skip: Skip = HASH_SKIP) -> int:
        """CRC-32C over all buckets but the keys in `skip`, as Maintenance.Hash has it."""
        await self.commit()
        started = time.perf_counter()
        with self.read_view() as view:
            value = await self.in_thread(lambda: hash_view(view, skip))
        self.observe("hash", time.perf_counter() - started)
        return value

    def size(self) -> int:
        """Bytes of the file up to the last page ever used, as of the last commit."""
        return self._database.sizes.total

    def size_in_use(self) -> int:
        """The same without free pages."""
        return self._database.sizes.in_use

    # Committing

    def commit_soon(self) -> None:
        """Commit when the loop has done what is at hand."""
        if not self._soon and self._loop is not None:
            self._soon = True
            self._loop.call_soon(self._on_soon)

    def _on_soon(self) -> None:
        self._soon = False
        self._start_commit()

    async def commit(self) -> None:
        """Return when everything written before is on disk.

        Raises:
            CommitError: this commit or an earlier one failed.
        """
        self._raise_failure()
        assert self._loop is not None, "a backend without a loop has only commit_now"
        future: asyncio.Future[None] = self._loop.create_future()
        self._next_waiting.append(future)
        self._start_commit()
        await future

    def commit_now(self) -> None:
        """The same, waiting right here: for tools, and for the end.

        Raises:
            CommitError: as for `commit`.
        """
        assert not self._committing, "a commit is under way in the thread"
        self._raise_failure()
        if self._freeze():
            self._finish_commit(self._write_growing())

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _start_commit(self) -> None:
        """Begin a commit, or have one begin after the one under way."""
        if self._committing or self._held:
            self._wanted = True
            return
        self._wanted = False
        if self.failure is not None:
            return
        frozen = self._freeze()
        self._waiting, self._next_waiting = self._next_waiting, []
        if frozen:
            self._committing = True
            self._submit()
        else:
            self._answer(None)

    def _submit(self) -> None:
        assert self._worker is not None
        database, batches = self._database, self._batches
        self._worker.submit(lambda: _write(database, batches))

    def _freeze(self) -> bool:
        """Take the overlays for a commit; False if there is nothing in them."""
        if failpoint.active:
            failpoint.hit("commitBeforePreCommitHook")
        self.pre_commit()
        if failpoint.active:
            failpoint.hit("commitAfterPreCommitHook")
            failpoint.hit("beforeWritebackBuf")
        changed = [layers for layers in self._layers.values() if layers.overlay]
        for layers in changed:
            assert not layers.frozen, "two commits at a time"
            layers.frozen, layers.overlay = layers.overlay, {}
        self._batches = [(layers.bucket, layers.frozen) for layers in changed]
        self.pending_ops = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if failpoint.active:
            failpoint.hit("afterWritebackBuf")
        self._started = time.perf_counter()
        return bool(changed)

    def _committed(self, result: Sizes | BaseException) -> None:
        """The thread is done."""
        self._committing = False
        if isinstance(result, lmdb.MapFullError):
            self._committing = True
            self._grow()
            return
        self._finish_commit(result)

    def _grow(self) -> None:
        """Try the same commit again with twice the map. Views of other threads are lost."""
        self._txn.abort()
        self._database.grow()
        self._begin_read()
        self._submit()

    def _write_growing(self) -> Sizes | BaseException:
        while True:
            try:
                return _write(self._database, self._batches)
            except lmdb.MapFullError:
                self._txn.abort()
                self._database.grow()
                self._begin_read()
            except Exception as error:
                return error

    def _finish_commit(self, result: Sizes | BaseException) -> None:
        if isinstance(result, BaseException):
            self._fail(result)
            return
        self._txn.abort()
        self._begin_read()
        for bucket, _ in self._batches:
            self._layers[bucket].frozen = {}
        if self._defrag is not None:
            self._defrag.add(self._batches)
        self._batches = []
        self.commits += 1
        self.observe("commit", time.perf_counter() - self._started)
        self.on_commit()
        self._answer(None)
        if self._wanted or self._next_waiting:
            self._start_commit()

    def _answer(self, error: BackendError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

    def _fail(self, cause: BaseException) -> None:
        """What was not committed stays readable, and is never called committed."""
        error = CommitError(f"cannot commit to the database {self.path}: {cause}")
        error.__cause__ = cause
        self.failure = error
        self._waiting += self._next_waiting
        self._next_waiting = []
        self._answer(error)
        self.on_fatal(error)

    def close(self) -> None:
        """Commit what is left and close the file.

        Raises:
            CommitError: the last commit failed, or an earlier one had.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._worker is not None:
            self._wanted = False
            self._worker.stop()
            self._worker = None
        self._readers.shutdown(cancel_futures=True)
        try:
            self.commit_now()
        finally:
            self._txn.abort()
            self._database.close()


def _write(database: Database, batches: Batches) -> Sizes:
    """One commit, in the commit thread."""
    if failpoint.active:
        failpoint.hit("beforeStartDBTxn")
        failpoint.hit("afterStartDBTxn")
        failpoint.hit("beforeCommit")
    sizes = database.write(batches)
    if failpoint.active:
        failpoint.hit("afterCommit")
    return sizes
