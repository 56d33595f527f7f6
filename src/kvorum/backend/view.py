"""A consistent view of what is committed, for readers in other threads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Self

import lmdb

from kvorum.backend.bucket import PREFIX, Bucket, Item, loaded_item, loaded_items, stored_key
from kvorum.backend.database import Database
from kvorum.backend.errors import ViewLostError


def stored_range(
    txn: lmdb.Transaction[bytes], db: lmdb._Database, lo: bytes, hi: bytes | None
) -> Iterator[Item]:
    """Pairs with lo <= key < hi (None: to the end) of a bucket, in key order."""
    cursor = txn.cursor(db)
    items = loaded_items(iter(cursor)) if cursor.set_range(lo[:PREFIX]) else iter(())
    for item in items:
        if hi is not None and item[0] >= hi:
            return
        if item[0] >= lo:
            yield item


def stored_revisions(
    txn: lmdb.Transaction[bytes], db: lmdb._Database, lo: bytes, hi: bytes | None
) -> Iterator[Item]:
    """The same for the bucket of revisions, whose keys are all short: twice as fast."""
    cursor = txn.cursor(db)
    if cursor.set_range(lo):
        if hi is None:
            yield from cursor
            return
        for item in cursor:
            if item[0] >= hi:
                return
            yield item


class ReadView:
    """One LMDB read transaction. Used by one thread at a time, any thread, and closed in the end:
    while it is open no page that it sees is used again, and the file grows."""

    def __init__(self, database: Database) -> None:
        database.acquire()
        self._database = database
        self._txn: lmdb.Transaction[bytes] | None = None
        try:
            self._txn = database.env.begin()
        except BaseException:
            database.release()
            raise

    def _reading(self) -> lmdb.Transaction[bytes]:
        if self._txn is None:
            raise ViewLostError(f"a view of {self._database.path} was read after it was closed")
        return self._txn

    def get(self, bucket: str, key: bytes) -> bytes | None:
        """The value of a key, None without."""
        bucket = Bucket(bucket)
        place = stored_key(key)
        try:
            value = self._reading().get(place, None, self._database.dbs[bucket]) if key else None
        except lmdb.Error as error:
            raise self._lost(error) from error
        return None if value is None else loaded_item(place, value)[1]

    def items(self, bucket: str, lo: bytes = b"", hi: bytes | None = None) -> Iterator[Item]:
        """Pairs with lo <= key < hi in key order, read as they are consumed.

        Raises:
            ViewLostError: the view was closed meanwhile.
        """
        bucket = Bucket(bucket)
        scan = stored_revisions if bucket is Bucket.KEY else stored_range
        try:
            yield from scan(self._reading(), self._database.dbs[bucket], lo, hi)
        except lmdb.Error as error:
            raise self._lost(error) from error

    def chunks(
        self, bucket: str, size: int, lo: bytes = b"", hi: bytes | None = None
    ) -> Iterator[list[Item]]:
        """The same in lists of `size`."""
        items = self.items(bucket, lo, hi)
        while chunk := list(islice(items, size)):
            yield chunk

    def count(self, bucket: str) -> int:
        """How many pairs a bucket has."""
        try:
            return self._reading().stat(self._database.dbs[Bucket(bucket)])["entries"]
        except lmdb.Error as error:
            raise self._lost(error) from error

    def _lost(self, error: lmdb.Error) -> ViewLostError:
        return ViewLostError(f"a read of {self._database.path} was cut short: {error}")

    def close(self) -> None:
        if self._txn is not None:
            self._txn.abort()
            self._txn = None  # the place in LMDB's reader table is free only with the object gone
            self._database.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
