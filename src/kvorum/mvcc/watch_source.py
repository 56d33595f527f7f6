"""The store's history as watches read it."""

from __future__ import annotations

from collections.abc import Iterator

from kvorum import errors
from kvorum.backend import Bucket
from kvorum.mvcc.kv import key_of
from kvorum.mvcc.revision import before, rev_key
from kvorum.mvcc.store import Store
from kvorum.mvcc.watch_types import Change
from kvorum.types import Revision, RevKey


class StoreHistory:
    """A `WatchStore` over the real store."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def rev(self) -> Revision:
        return self._store.rev

    @property
    def compact_rev(self) -> Revision:
        return self._store.compact_rev

    def history(self, first: Revision, last: Revision) -> Iterator[Change]:
        records = self._store.backend.scan(Bucket.KEY, rev_key(first), before(last + 1))
        for rev, record in records:
            yield RevKey(rev), key_of(record), record, None

    def kv_at(self, key: bytes, rev: Revision) -> bytes | None:
        try:
            kvs = self._store.range_kvs(key, b"", rev=rev).kvs
        except errors.Compacted:
            return None
        return kvs[0] if kvs else None

    def kv_by_rev(self, rev_key: RevKey) -> bytes | None:
        return self._store.backend.get_revision(rev_key)
