"""A consistent view of what is committed, for readers in other threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final, Protocol, Self

import lmdb

from kvorum.backend.bucket import PREFIX, Bucket, Item, loaded_item, loaded_items, stored_key
from kvorum.backend.errors import BackendError, ViewLostError

CHUNK: Final = 128
"""Pairs that `ReadView.items` reads at a time."""
CHUNK_BYTES: Final = 1 << 20
"""A chunk ends with the value that brings it to this size."""


def stored_range(
    txn: lmdb.Transaction[bytes], db: lmdb._Database, lo: bytes, hi: bytes | None
) -> Iterator[Item]:
    """Pairs with lo <= key < hi (None: to the end) of a bucket, in key order."""
    for item in loaded_items(stored_revisions(txn, db, lo[:PREFIX], None)):
        if hi is not None and item[0] >= hi:
            return
        if item[0] >= lo:
            yield item


def stored_revisions(
    txn: lmdb.Transaction[bytes], db: lmdb._Database, lo: bytes, hi: bytes | None
) -> Iterator[Item]:
    """The same for the bucket of revisions, whose keys are all short: twice as fast."""
    try:
        cursor = txn.cursor(db)
        if not cursor.set_range(lo):
            return
        if hi is None:
            yield from cursor
            return
        for item in cursor:
            if item[0] >= hi:
                return
            yield item
    except lmdb.Error as error:
        raise BackendError(f"cannot read the database: {error}") from error


def _take(items: Iterator[Item], size: int) -> list[Item]:
    return list(islice(items, size))


def _take_bounded(items: Iterator[Item], size: int) -> list[Item]:
    chunk: list[Item] = []
    room = CHUNK_BYTES
    for item in islice(items, size):
        chunk.append(item)
        room -= len(item[1])
        if room <= 0:
            break
    return chunk


class Viewed(Protocol):
    """What a view is of: a `Database`, or one that another process has open."""

    path: Path
    env: lmdb.Environment
    dbs: dict[Bucket, lmdb._Database]

    def enter(self, view: ReadView) -> None: ...

    def leave(self, view: ReadView) -> None: ...

    def release_memory(self) -> None: ...


class ReadView:
    """One LMDB read transaction. Read by one thread at a time, and closed in the end, by any thread
    and at any time: while it is open no page that it sees is used again, and the file grows.

    LMDB's cursors crash the process when their transaction ends in the middle of a read. A lock is
    therefore held around each piece of reading. Who closes does not wait for it: if a reader is at
    work, it does the closing after its piece.
    """

    def __init__(self, database: Viewed) -> None:
        self._database = database
        self._lock = Lock()
        self._closing = False
        self._txn: lmdb.Transaction[bytes] | None = None
        database.enter(self)
        try:
            self._txn = database.env.begin()
        except BaseException:
            database.leave(self)
            raise

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        try:
            with self._lock:
                if self._txn is None:
                    path = self._database.path
                    raise ViewLostError(f"a view of {path} was closed before its reader was done")
                yield self._txn
        finally:
            if self._closing:
                self.close()

    def get(self, bucket: str, key: bytes) -> bytes | None:
        """The value of a key, None without. Raises ViewLostError if the view is closed."""
        if not key:
            return None
        place = stored_key(key)
        with self._reading() as txn:
            value = txn.get(place, None, self._database.dbs[Bucket(bucket)])
        return None if value is None else loaded_item(place, value)[1]

    def chunks(
        self, bucket: str, size: int, lo: bytes = b"", hi: bytes | None = None
    ) -> Iterator[list[Item]]:
        """Pairs with lo <= key < hi (None: to the end) in key order, in lists of `size`, or fewer
        where values are long, read as they are consumed.

        Raises:
            ViewLostError: the view was closed meanwhile.
        """
        bucket = Bucket(bucket)
        scan = stored_revisions if bucket is Bucket.KEY else stored_range
        items: Iterator[Item] | None = None
        while True:
            with self._reading() as txn:
                if items is None:
                    db = self._database.dbs[bucket]
                    items = scan(txn, db, lo, hi)
                    # LMDB keeps only values of less than half a page among the others.
                    take = _take_bounded if txn.stat(db)["overflow_pages"] else _take
                chunk = take(items, size)
            if not chunk:
                return
            yield chunk

    def items(self, bucket: str, lo: bytes = b"", hi: bytes | None = None) -> Iterator[Item]:
        """The same one by one."""
        return chain.from_iterable(self.chunks(bucket, CHUNK, lo, hi))

    def count(self, bucket: str) -> int:
        """How many pairs a bucket has. Raises ViewLostError if the view is closed."""
        with self._reading() as txn:
            return txn.stat(self._database.dbs[Bucket(bucket)])["entries"]

    def number(self) -> int:
        """Of the transaction whose result it sees. Raises ViewLostError if the view is closed."""
        with self._reading() as txn:
            return txn.id()

    def release_memory(self) -> None:
        """Give back the memory in which the database is mapped. For who reads much of it."""
        with self._reading():
            self._database.release_memory()

    def close(self) -> None:
        """End it, or have the reader that is at work end it; further reads fail."""
        self._closing = True
        if self._lock.acquire(blocking=False):
            self._end()

    def lose(self) -> None:
        """End it, waiting for the reader that is at work."""
        self._closing = True
        self._lock.acquire()
        self._end()

    def _end(self) -> None:
        txn, self._txn = self._txn, None
        self._lock.release()
        if txn is not None:
            txn.abort()
            del txn  # the place in LMDB's table of readers is free only with the object gone
            self._database.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
