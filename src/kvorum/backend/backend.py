"""The backend: etcd's buckets, with writes gathered in memory and committed in the background.

Writes are readable at once and on disk with the next commit. A commit is one LMDB transaction, and
what the `pre_commit` hook puts (the consistent index) is in the same one, so that a crash leaves a
state from which the raft log goes on exactly. ``layers.py`` has how reads find what is not
committed, ``committer.py`` when commits happen, ``defrag.py`` how the file is made smaller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import lmdb

from kvorum import failpoint
from kvorum.backend.bucket import Bucket, Item
from kvorum.backend.committer import Batches, Committer
from kvorum.backend.database import MAP_SIZE, Database, sync_directory
from kvorum.backend.defrag import MAX_ROUNDS, SHORT_BACKLOG, Defrag, lock_path, remove_leftovers
from kvorum.backend.errors import BackendError, CommitError, DefragError, OpenError
from kvorum.backend.hash import HASH_SKIP, Skip, hash_view
from kvorum.backend.image import Image
from kvorum.backend.layers import MISSING, Layers
from kvorum.backend.recent import RecentRecords
from kvorum.backend.view import ReadView

FILE_NAME: Final = "kvorum.mdb"
BATCH_INTERVAL: Final = 0.1
BATCH_LIMIT: Final = 10_000
FEW: Final = 8
"""Records read at once for which remembering them would cost more than it saves."""
READ_THREADS: Final = 4
"""Hashes, copies and snapshots that run at once; more wait."""

T = TypeVar("T")
Observer = Callable[[str, float], None]


def _ignore(*_: Any) -> None:
    """The default of every hook."""


class Backend:
    """All methods are for the thread that made it (the loop's). Buckets are named by `Bucket` or
    plain text.

    Without a loop nothing commits by itself, and `commit_now` is the way: for tools.

    Hooks, to be set by the owner:
        pre_commit: called right before the writes of a commit are taken; it may put more.
        on_commit: called after each commit, when `size` may have changed.
        on_replace: called by `replace` in the same step in which reads begin to see the new
            content, so that nobody reads it with what was known of the old.
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
        self.on_replace: Callable[[], None] = _ignore
        self.on_fatal: Callable[[CommitError], None] = _ignore
        self.observe: Observer = _ignore
        self.pending_ops = 0
        self.commits = 0
        self.database = _opened(path, map_size)
        self._layers: dict[str, Layers] = {b: Layers(b, self.database) for b in Bucket}
        self._key = self._layers[Bucket.KEY]
        self._committer = Committer(self, loop, interval=batch_interval, limit=batch_limit)
        self._limit = batch_limit
        self._loop = loop
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="kvorum-backend")
        self._swapping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._defrag: Defrag | None = None
        self._closed = False
        self._recent = RecentRecords()
        self._begin_read()

    def _begin_read(self) -> None:
        self._txn = self.database.env.begin(db=self.database.dbs[Bucket.KEY])
        self._get = self._txn.get

    # Writing

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        """Set a key. Raises ValueError for an empty one, which no bucket may have."""
        if not key:
            raise ValueError(f"empty key in bucket {bucket}")
        self._layers[bucket].overlay[key] = value
        self._count(1)

    def delete(self, bucket: str, key: bytes) -> None:
        """Remove a key, if it is there."""
        self._layers[bucket].overlay[key] = None
        self._count(1)

    def put_revision(self, rev_key: bytes, record: bytes) -> None:
        """`put` to bucket ``key``, without the looking up: the hot path."""
        self._key.overlay[rev_key] = record
        self.pending_ops = pending = self.pending_ops + 1
        if pending == 1 or pending == self._limit:
            self._committer.arm(pending)

    def delete_revisions(self, rev_keys: Iterable[bytes]) -> None:
        """Remove many from bucket ``key``."""
        gone = dict.fromkeys(rev_keys)
        self._key.overlay.update(gone)
        self._count(len(gone))

    def _count(self, ops: int) -> None:
        before = self.pending_ops
        self.pending_ops = before + ops
        if before == 0 or before < self._limit <= self.pending_ops:
            self._committer.arm(self.pending_ops)

    # Reading

    def get(self, bucket: str, key: bytes) -> bytes | None:
        """The value of a key, None without."""
        return self._layers[bucket].get(self._txn, key)

    def get_revision(self, rev_key: bytes) -> bytes | None:
        """`get` from bucket ``key``: the hot path."""
        layers = self._key
        value = layers.overlay.get(rev_key, MISSING)
        if value is MISSING:
            value = layers.frozen.get(rev_key, MISSING)
            if value is MISSING:
                return self._get(rev_key)
        return value

    def get_revisions(self, rev_keys: Sequence[bytes]) -> list[bytes]:
        """Many from bucket ``key``, in the order given.

        Raises:
            BackendError: one is not there.
        """
        if len(rev_keys) < FEW:
            return self._load_revisions(rev_keys)
        return self._recent.get_many(rev_keys, self._load_revisions)

    def _load_revisions(self, rev_keys: Sequence[bytes]) -> list[bytes]:
        layers = self._key
        get, over, frozen = self._get, layers.overlay, layers.frozen
        if not over and not frozen:
            found = list(map(get, rev_keys))
        else:
            found = [
                over[k] if k in over else frozen[k] if k in frozen else get(k) for k in rev_keys
            ]
        if None in found:
            missing = rev_keys[found.index(None)]
            raise BackendError(f"{self.path} has no revision {missing.hex()}")
        return cast(list[bytes], found)

    def get_many(self, bucket: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values of keys, in the order given."""
        layers, txn = self._layers[bucket], self._txn
        return [layers.get(txn, key) for key in keys]

    def range(self, bucket: str, lo: bytes, hi: bytes | None, limit: int = 0) -> list[Item]:
        """Pairs with lo <= key < hi (None: to the end) in key order, `limit` of them (0: all)."""
        return list(islice(self.scan(bucket, lo, hi), limit or None))

    def scan(self, bucket: str, lo: bytes = b"", hi: bytes | None = None) -> Iterator[Item]:
        """The same one by one; to be consumed before anything is written or the loop goes on."""
        return self._layers[bucket].scan(self._txn, lo, hi)

    def read_view(self) -> ReadView:
        """What is committed now, for use in another thread. Await `commit` before, to have all.

        Raises:
            BackendError: there are too many views, or the backend is closed.
        """
        try:
            return ReadView(self.database)
        except lmdb.Error as error:
            raise BackendError(f"cannot begin a read of {self.path}: {error}") from error

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in one of the few threads for long reads."""
        assert self._loop is not None, "a backend without a loop has no threads"
        if self._closed:
            raise BackendError(f"{self.path} is closed")
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
        return self.database.sizes.total

    def size_in_use(self) -> int:
        """The same without free pages."""
        return self.database.sizes.in_use

    # Committing

    def commit_soon(self) -> None:
        """Commit when the loop has done what is at hand."""
        self._committer.soon()

    def commit_later(self) -> None:
        """Commit within the interval, even if nothing is written until then."""
        self._committer.arm(self.pending_ops)

    async def commit(self) -> None:
        """Return when everything written before is on disk.

        Raises:
            CommitError: this commit or an earlier one failed.
        """
        await self._committer.commit()

    def commit_now(self) -> None:
        """The same, waiting right here: for tools, and for the end. Raises CommitError."""
        self._committer.commit_now()

    def take(self) -> Batches:
        """For the committer: run the hook and freeze what is pending."""
        if failpoint.active:
            failpoint.hit("commitBeforePreCommitHook")
        self.pre_commit()
        if failpoint.active:
            failpoint.hit("commitAfterPreCommitHook")
            failpoint.hit("beforeWritebackBuf")
        changed = [layers for layers in self._layers.values() if layers.overlay]
        batches: Batches = [(layers.bucket, layers.freeze()) for layers in changed]
        self.pending_ops = 0
        if failpoint.active:
            failpoint.hit("afterWritebackBuf")
        return batches

    def landed(self, batches: Batches, seconds: float) -> None:
        """For the committer: LMDB has the frozen layers now."""
        self._txn.abort()
        self._begin_read()
        for bucket, _ in batches:
            self._layers[bucket].frozen = {}
        if self._defrag is not None:
            self._defrag.add(batches)
        self.commits += 1
        self.observe("commit", seconds)
        self.on_commit()

    def grow(self) -> None:
        """For the committer: double the map. Views of other threads are lost."""
        self._txn.abort()
        self.database.grow()
        self._begin_read()

    def failed(self, error: CommitError) -> None:
        """For the committer: what is not committed stays readable, and that is all."""
        self.on_fatal(error)

    # The file itself

    async def image(self) -> Image:
        """Everything written so far, as the file is. Whoever asks has to close it.

        Raises:
            CommitError: it could not be committed.
            BackendError: there are too many views, or the backend is closed.
        """
        await self.commit()
        async with self._swapping:
            await self._committer.hold()
            try:
                view = self.read_view()
                try:
                    return Image(self.path, view)
                except BaseException:
                    view.close()
                    raise
            finally:
                self._committer.release()

    # Other processes that read the file

    def staying(self) -> AbstractAsyncContextManager[None]:
        """While it is held, the file at `path` is the one in use: who opens it there opens that."""
        return self._swapping

    def forget_dead_readers(self) -> None:
        """A process that read the file has ended, perhaps without letting go of its view."""
        if not self._closed:
            self.database.env.reader_check()

    # Replacing the file

    async def defrag(self) -> None:
        """Make the file as small as it can be; everything goes on meanwhile. Cancelling the caller
        does not stop it.

        Raises:
            DefragError: it was given up, and nothing has changed.
            CommitError: a commit failed meanwhile.
        """
        await self._to_the_end(self._defragment())

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do not leave a thread behind that goes on changing files."""
        assert self._loop is not None, "a backend without a loop has no threads"
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _defragment(self) -> None:
        async with self._swapping:
            started = time.perf_counter()
            self._defrag = job = Defrag(self.database)
            try:
                await self._copy(job)
                await self._install(job)
            finally:
                self._defrag = None
                if not job.installed:
                    job.discard()
            self.observe("defrag", time.perf_counter() - started)
            self.on_commit()

    async def _copy(self, job: Defrag) -> None:
        await self.in_thread(job.make_copy)
        for _ in range(MAX_ROUNDS):
            if job.backlog_bytes < SHORT_BACKLOG:
                return
            backlog = job.take()
            await self.in_thread(lambda backlog=backlog: job.catch_up(backlog))  # type: ignore[misc]
        raise DefragError("defragmentation was given up: writes came faster than they were copied")

    async def _install(self, job: Defrag) -> None:
        await self._committer.hold()
        try:
            rest = job.take()
            await self.in_thread(lambda: job.catch_up(rest))
            job.check()
            await self.in_thread(job.install)
        except OSError as error:
            self._committer.fail(error)
        finally:
            if job.installed and not self._closed:
                assert job.copy is not None
                self._use(job.copy)
            self._committer.release()

    async def replace(self, path: Path) -> None:
        """Put the database at `path` (made by `write_database`) in the place of this one, and drop
        everything of this one, committed or not. The caller has no writes under way.

        Raises:
            OpenError: it cannot be opened; nothing has changed.
            OSError: it cannot be renamed or synced. The caller must not go on: which of the two
                the next start will find is not known.
            CommitError: a commit failed before.
        """
        await self._to_the_end(self._replace(path))

    async def _replace(self, path: Path) -> None:
        async with self._swapping:
            await self._committer.hold()
            try:
                replacement = await self.in_thread(lambda: _moved(path, self.path))
                if self._closed:
                    replacement.close()
                    raise BackendError(f"{self.path} was closed while it was replaced")
                for layers in self._layers.values():
                    layers.overlay.clear()
                self.pending_ops = 0
                self._use(replacement)
                self.on_replace()
            finally:
                self._committer.release()
            self.on_commit()

    def _use(self, database: Database) -> None:
        """Go on with another database, that lies at the path of this one."""
        database.path = self.path
        self._txn.abort()
        self._recent.clear()
        old, self.database = self.database, database
        for layers in self._layers.values():
            assert not layers.frozen, "a commit is under way"
            layers.db = database.dbs[layers.bucket]
        self._begin_read()
        old.retire()

    def refuse_commits(self, cause: BaseException) -> None:
        """What is not committed yet may be half of something: it must never be. `cause` is told to
        everybody who waits or will."""
        if self._committer.failure is None:
            self._committer.fail(cause)

    def close(self) -> None:
        """Commit what is left and close the file. A defragmentation under way is given up, and
        views are lost.

        Raises:
            CommitError: the last commit failed, or an earlier one had.
        """
        if self._closed:
            return
        self._closed = True
        self._committer.stop()
        if self._defrag is not None:
            self._defrag.cancel("the backend was closed")
        self.database.lose_views()
        self._readers.shutdown(cancel_futures=True)
        if self._defrag is not None and self._defrag.installed:
            assert self._defrag.copy is not None
            self._use(self._defrag.copy)
        try:
            self.commit_now()
        finally:
            self._txn.abort()
            self.database.close()


def _opened(path: Path, map_size: int) -> Database:
    database = Database(path, map_size=map_size)
    try:
        remove_leftovers(path)
    except OSError as error:
        database.close()
        raise OpenError(f"cannot remove what an earlier run left: {error}") from error
    return database


def _moved(source: Path, target: Path) -> Database:
    """The database at `source`, open, and renamed to `target`."""
    database = Database(source)
    try:
        source.rename(target)
        lock_path(source).rename(lock_path(target))
        sync_directory(target.parent)
    except BaseException:
        database.close()
        raise
    return database
