"""One bucket's uncommitted writes above its place in LMDB.

=========  =====================================================
overlay    written since the last commit began; None is a delete
frozen     being written by the commit under way
LMDB       committed
=========  =====================================================

A read looks from the top down.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from typing import Final

import lmdb

from kvorum.backend.bucket import Bucket, Item, loaded_item, stored_key
from kvorum.backend.database import Database
from kvorum.backend.view import stored_range, stored_revisions

MISSING: Final = b"missing"
"""Stands for "look further down"; told apart by identity."""


class Layers:
    """The layers of one bucket. ``db`` is its handle in the open database."""

    __slots__ = ("bucket", "db", "frozen", "overlay")

    def __init__(self, bucket: Bucket, database: Database) -> None:
        self.bucket = bucket
        self.db = database.dbs[bucket]
        self.overlay: dict[bytes, bytes | None] = {}
        self.frozen: dict[bytes, bytes | None] = {}

    def get(self, txn: lmdb.Transaction[bytes], key: bytes) -> bytes | None:
        """The value of a key."""
        value = self.overlay.get(key, MISSING)
        if value is MISSING:
            value = self.frozen.get(key, MISSING)
        if value is not MISSING or not key:
            return None if value is MISSING else value
        place = stored_key(key)
        stored = txn.get(place, None, self.db)
        return None if stored is None else loaded_item(place, stored)[1]

    def scan(self, txn: lmdb.Transaction[bytes], lo: bytes, hi: bytes | None) -> Iterator[Item]:
        """Pairs with lo <= key < hi (None: to the end), in key order."""
        read = stored_revisions if self.bucket is Bucket.KEY else stored_range
        stored = read(txn, self.db, lo, hi)
        changes = self._changes(lo, hi)
        if not changes:
            return stored
        fresh = sorted((key, value) for key, value in changes.items() if value is not None)
        return merge((item for item in stored if item[0] not in changes), fresh)

    def _changes(self, lo: bytes, hi: bytes | None) -> dict[bytes, bytes | None]:
        """What is not committed of a range."""
        if not self.overlay and not self.frozen:
            return {}
        return {
            key: value
            for layer in (self.frozen, self.overlay)
            for key, value in layer.items()
            if key >= lo and (hi is None or key < hi)
        }

    def freeze(self) -> dict[bytes, bytes | None]:
        """Hand the overlay to a commit. Invariant: there is one commit at a time."""
        assert not self.frozen, f"bucket {self.bucket} is being committed already"
        self.frozen, self.overlay = self.overlay, {}
        return self.frozen
