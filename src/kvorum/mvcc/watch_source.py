"""The store's history as watches read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvorum import errors
from kvorum.backend import Bucket
from kvorum.mvcc.kv import key_of
from kvorum.mvcc.revision import before, rev_key
from kvorum.mvcc.store import Store
from kvorum.mvcc.watch_types import Change
from kvorum.types import Revision, RevKey

READ_BYTES: Final = 1 << 20
FEWEST: Final = 16
MOST: Final = 1000
"""Records per read of the backend: about `READ_BYTES`, judged by the size of those before. A read
has a cost of its own, so that few large ones are better; but a thousand may be a gigabyte."""


class StoreHistory:
    """A `WatchStore` over the real store."""

    __slots__ = ("_batch", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batch = FEWEST

    @property
    def rev(self) -> Revision:
        return self._store.rev

    @property
    def compact_rev(self) -> Revision:
        return self._store.compact_rev

    def history(self, first: Revision, last: Revision) -> Iterator[Change]:
        backend = self._store.backend
        lo: bytes = rev_key(first)
        end = before(last + 1)
        while True:
            limit = self._batch
            items = backend.range(Bucket.KEY, lo, end, limit)
            for rev, record in items:
                yield RevKey(rev), key_of(record), record, None
            if items:
                size = sum(len(record) for _, record in items) // len(items) + 1
                self._batch = min(max(READ_BYTES // size, FEWEST), MOST)
            if len(items) < limit:
                return
            lo = items[-1][0] + b"\0"

    def kv_at(self, key: bytes, rev: Revision) -> bytes | None:
        try:
            kvs = self._store.range_kvs(key, b"", rev=rev).kvs
        except errors.Compacted:
            return None
        return kvs[0] if kvs else None

    def kv_by_rev(self, rev_key: RevKey) -> bytes | None:
        return self._store.backend.get_revision(rev_key)
