"""Filling the index from the backend, at the start of a member."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, NamedTuple, cast

from kvorum.backend import Backend, Bucket
from kvorum.mvcc.history import append_put, append_tombstone, is_dead, new_history
from kvorum.mvcc.index import Entry, Index
from kvorum.mvcc.kv import create_and_version, key_of, lease_of
from kvorum.mvcc.revision import REV_KEY_LEN, main_of
from kvorum.types import RevKey

SCHEDULED: Final = b"scheduledCompactRev"
FINISHED: Final = b"finishedCompactRev"

_CHUNK: Final = 1000


class Restored(NamedTuple):
    """Revisions found (-1: none), and the keys of the live pairs that have a lease."""

    rev: int
    finished: int
    scheduled: int
    leased: dict[bytes, int]


@contextmanager
def _no_collection() -> Iterator[None]:
    """A million new objects would have the collector walk all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def restore_index(backend: Backend, index: Index) -> Restored:
    """Read every revision into an empty index.

    The newest revision may be above that of the last record: a compaction may have removed it.
    """
    finished = read_mark(backend, FINISHED)
    scheduled = read_mark(backend, SCHEDULED)
    loader = _Loader()
    records = cast(Iterator[tuple[RevKey, bytes]], backend.scan(Bucket.KEY))
    with _no_collection():
        while chunk := list(islice(records, _CHUNK)):
            loader.add(chunk)
        index.load_all(loader.entries, loader.orphans)
    return Restored(max(1, loader.last, finished, scheduled), finished, scheduled, loader.leased)


def read_mark(backend: Backend, name: bytes) -> int:
    """The revision of a compaction mark, -1 without."""
    value = backend.get(Bucket.META, name)
    return -1 if value is None else main_of(value)


class _Loader:
    """Index entries out of records in revision order, by etcd's rules.

    A key first seen as a tombstone was compacted there: all that is known is that it was deleted.
    A tombstone of a key that is deleted already is an orphan: no index entry refers to it.
    """

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.leased: dict[bytes, int] = {}
        self.orphans: list[RevKey] = []
        self.last = 0

    def add(self, chunk: list[tuple[RevKey, bytes]]) -> None:
        leased = self.leased
        setdefault = self.entries.setdefault
        for rev, record in chunk:
            # key_of for short keys, in place: a million calls are a tenth of the whole time.
            length = record[1] if record else 0
            key = record[2 : 2 + length] if length < 0x80 else key_of(record)
            if len(rev) > REV_KEY_LEN:
                self._add_tombstone(key, rev)
                continue
            entry = setdefault(key, rev)
            if entry is not rev:
                self._add_another(key, entry, rev, record)
            if 0x30 in record[-11:-1] and (lease := lease_of(record)):
                leased[key] = lease
            elif leased:
                leased.pop(key, None)
        self.last = main_of(chunk[-1][0])

    def _add_another(self, key: bytes, entry: Entry, rev: RevKey, record: bytes) -> None:
        if isinstance(entry, bytes):
            # Its own version is not known, but it is one less than that of the next.
            create, version = create_and_version(record)
            entry = self.entries[key] = new_history(entry, create, version - 1)
        append_put(entry, rev, main_of(rev))

    def _add_tombstone(self, key: bytes, rev: RevKey) -> None:
        self.leased.pop(key, None)
        entry = self.entries.get(key)
        if entry is None:
            self.entries[key] = new_history(rev, 0, 0)
        elif isinstance(entry, bytes):
            entry = self.entries[key] = new_history(entry, 0, 0)
            append_tombstone(entry, rev)
        elif is_dead(entry):
            self.orphans.append(rev)
        else:
            append_tombstone(entry, rev)
