"""The database file: an LMDB environment with one named database per bucket.

Opening takes an exclusive flock on the file itself, as etcd does with its own, so that no second
member uses the directory. All of this may be called from any thread; an LMDB write transaction
stays in the thread that began it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import lmdb

from kvorum.backend.bucket import Bucket, Item, stored_item, stored_key
from kvorum.backend.check import is_sound
from kvorum.backend.errors import BackendError, CorruptError, LockedError, OpenError
from kvorum.backend.mapping import release_mapping

Changes = Mapping[bytes, bytes | None]
"""What to write to a bucket: the new value of each key, None where it goes away."""

FILE_MODE: Final = 0o600
MAP_SIZE: Final = 64 << 30
"""Address space to begin with. It costs nothing but addresses, and is far above any quota in use,
so that growing it is rare."""
MIN_MAP_SIZE: Final = 256 << 20
MAX_READERS: Final = 1024
LOCK_SUFFIX: Final = "-lock"
_DAMAGED: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


class View(Protocol):
    """A reader of the database in another thread."""

    def lose(self) -> None:
        """End now: when this returns, nothing is being read."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the file up to the last page ever used, and of these the ones that hold data."""

    total: int
    in_use: int


class Database:
    """An open database file."""

    def __init__(self, path: Path, *, map_size: int = MAP_SIZE) -> None:
        """Open, and create if it is not there.

        Raises:
            LockedError: another process has it.
            CorruptError: it is not an LMDB file, or of another version, or cut off.
            OpenError: the directory or file cannot be read or written.
        """
        self.path = path
        self._views: set[View] = set()
        self._retired = False
        self._guard = threading.Lock()
        self.closed = threading.Event()
        self._lock_fd = _lock(path)
        is_new = os.fstat(self._lock_fd).st_size == 0
        try:
            self.env = _open(path, map_size)
            try:
                self._page = self.env.stat()["psize"]
                self._cover_all_pages()
                self.dbs = {bucket: self.env.open_db(bucket.encode()) for bucket in Bucket}
                if is_new:
                    sync_directory(path.parent)
                with self.env.begin() as txn:
                    self.sizes = self._sizes(self._bytes_in_use(txn))
            except BaseException:
                self.env.close()
                raise
        except lmdb.Error as error:
            os.close(self._lock_fd)
            raise _open_error(path, error) from error
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _cover_all_pages(self) -> None:
        """A file that was cut off must not end the process with SIGBUS when the missing pages are
        touched: it is filled up with zeros. Where the missing pages are free ones, which LMDB need
        not have written, nothing is lost; otherwise LMDB would end the process later, so that has
        to be found out now."""
        size = (self.env.info()["last_pgno"] + 1) * self._page
        if os.fstat(self._lock_fd).st_size < size:
            os.ftruncate(self._lock_fd, size)
            if not is_sound(self.path):
                raise CorruptError(f"the database {self.path} was cut off: it lacks pages in use")

    @property
    def map_size(self) -> int:
        return self.env.info()["map_size"]

    def write(self, batches: Iterable[tuple[Bucket, Changes]]) -> Sizes:
        """Write everything in one transaction and sync it; the sizes afterwards.

        Raises:
            lmdb.MapFullError: the map has to grow first; nothing was written.
            lmdb.Error: the disk is full or broken; nothing was written.
        """
        txn = self.env.begin(write=True)
        try:
            for bucket, changes in batches:
                self._change(txn, bucket, changes)
            in_use = self._bytes_in_use(txn)
            txn.commit()
        except BaseException:
            txn.abort()
            raise
        self.sizes = self._sizes(in_use)
        return self.sizes

    def append(self, batches: Iterable[tuple[Bucket, list[Item]]]) -> None:
        """Write new items in one transaction, and sync it. Those of bucket ``key`` are best given
        in order. Raises as `write` does."""
        with self.env.begin(write=True) as txn:
            for bucket, items in batches:
                if bucket is not Bucket.KEY:
                    items = [stored_item(key, value) for key, value in items]
                _put(txn, self.dbs[bucket], items, ascending=bucket is Bucket.KEY)

    def _change(self, txn: lmdb.Transaction[bytes], bucket: Bucket, changes: Changes) -> None:
        db = self.dbs[bucket]
        if bucket is Bucket.KEY:
            puts = [(key, value) for key, value in changes.items() if value is not None]
        else:
            puts = [stored_item(k, v) for k, v in changes.items() if v is not None]
        if len(puts) < len(changes):
            for key in sorted(key for key, value in changes.items() if value is None):
                txn.delete(stored_key(key), db=db)
        _put(txn, db, puts, ascending=bucket is Bucket.KEY)

    def _bytes_in_use(self, txn: lmdb.Transaction[bytes]) -> int:
        """Of all trees and the two meta pages. LMDB's list of free pages is not readable from
        here; its own few pages count as free."""
        stats = [txn.stat(), *(txn.stat(db) for db in self.dbs.values())]
        pages = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return (pages + 2) * self._page

    def _sizes(self, in_use: int) -> Sizes:
        total = (self.env.info()["last_pgno"] + 1) * self._page
        return Sizes(total, min(total, in_use))

    def release_memory(self) -> None:
        """Give back the memory in which the file is mapped; what is read next comes back."""
        release_mapping(os.fstat(self._lock_fd).st_ino)

    def grow(self) -> None:
        """Double the map. Every open transaction of this environment is lost."""
        self.lose_views()
        self.env.set_mapsize(self.map_size * 2)

    def enter(self, view: View) -> None:
        """Count a reader, so that a retired database stays open until it is done.

        Raises:
            BackendError: the database takes no more readers.
        """
        with self._guard:
            if self._retired:
                raise BackendError(f"{self.path} is closed")
            self._views.add(view)

    def leave(self, view: View) -> None:
        """A reader is done."""
        with self._guard:
            self._views.discard(view)
            last = self._retired and not self._views
        if last:
            self._close_aside()

    @property
    def views(self) -> int:
        """How many readers there are."""
        return len(self._views)

    def lose_views(self) -> None:
        """End all reading. Each reader is waited for, but only for a moment."""
        for view in list(self._views):
            view.lose()

    def retire(self) -> None:
        """Take no more readers, and close as soon as nobody reads any more."""
        with self._guard:
            self._retired = True
            idle = not self._views
        if idle:
            self._close_aside()

    def _close_aside(self) -> None:
        """To unmap a large file takes a while, and nobody need wait for it."""
        threading.Thread(target=self.close, name="kvorum-unmap", daemon=True).start()

    def close(self) -> None:
        """Close at once. Whoever still reads gets an error."""
        with self._guard:
            self._retired = True
        self.lose_views()
        with self._guard:
            if not self.closed.is_set():
                self.env.close()
                os.close(self._lock_fd)
                self.closed.set()


def _put(
    txn: lmdb.Transaction[bytes], db: lmdb._Database, items: list[Item], *, ascending: bool
) -> None:
    """Revisions only ever go up, and LMDB fills pages whole when told so. What turns out not to be
    past the end is skipped by it, and then written the ordinary way."""
    with txn.cursor(db) as cursor:
        if not (ascending and cursor.putmulti(items, append=True)[1] == len(items)):
            cursor.putmulti(items)


def _lock(path: Path) -> int:
    """The file, opened (and created) and locked."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise OpenError(f"cannot open the database {path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LockedError(f"the database {path} is in use by another process") from None
        # Between open and lock its owner may have put a defragmented file in its place.
        if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
        os.close(fd)


def _open(path: Path, map_size: int) -> lmdb.Environment:
    """With less address space where the process may not have as much."""
    while True:
        try:
            return lmdb.open(
                os.fspath(path),
                map_size=map_size,
                subdir=False,
                mode=FILE_MODE,
                max_dbs=len(Bucket),
                max_readers=MAX_READERS,
            )
        except lmdb.MemoryError:
            if map_size // 2 < max(MIN_MAP_SIZE, path.stat().st_size):
                raise
            map_size //= 2


def _open_error(path: Path, error: lmdb.Error) -> OpenError:
    # The library reports a file format it does not know with no class of its own.
    if isinstance(error, _DAMAGED) or "data format" in str(error):
        return CorruptError(f"the database {path} is damaged or not of this kind: {error}")
    return OpenError(f"cannot open the database {path}: {error}")


def sync_directory(path: Path) -> None:
    """Make a rename in a directory last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
