"""The index: user key -> where its revisions are, in memory, ordered by key.

Most keys have exactly one revision, and for them the entry is just that RevKey (a live one, never
a tombstone). A key with history has a `KeyIndex`. The keys among these that are deleted now are
also in a set of their own, so that counting live keys is a subtraction and not a walk.

Ranges are etcd's: an empty end means the one key, an end of one zero byte means to the last key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, cast

from BTrees.OOBTree import OOBTree, OOTreeSet

from kvorum.mvcc.key_index import KeyIndex
from kvorum.mvcc.kv import header_of
from kvorum.mvcc.revision import before
from kvorum.types import RevKey

Entry = RevKey | KeyIndex
TO_THE_END: Final = b"\x00"


class _Tree(OOBTree):  # type: ignore[misc] # BTrees is not typed
    """With larger leaves than the default: less memory a key, and no slower."""

    max_leaf_size = 60


class Index:
    """`load` gives the record of a revision, for the create revision and version of a key that is
    written a second time."""

    def __init__(self, load: Callable[[RevKey], bytes]) -> None:
        self._load = load
        self._tree = _Tree()
        self._dead = OOTreeSet()
        self._orphans: list[RevKey] = []
        self.setdefault: Callable[[bytes, RevKey], Entry] = self._tree.setdefault
        """``setdefault(key, rev)`` is the first half of a put: it is done if `rev` comes back."""
        self.get: Callable[[bytes], Entry | None] = self._tree.get

    def __len__(self) -> int:
        """How many keys are live."""
        return len(self._tree) - len(self._dead)

    def overwrite(
        self, key: bytes, entry: Entry, rev: RevKey, main: int
    ) -> tuple[int, int, RevKey | None]:
        """The second half of a put, for a key that has an entry: create revision and version of
        the new revision, and the live one before it."""
        if isinstance(entry, bytes):
            header = header_of(self._load(entry))
            assert header.version > 0, f"record of {entry.hex()} has no version"
            version = header.version + 1
            self._tree[key] = KeyIndex([entry, rev], header.create, version)
            return header.create, version, entry
        revs = entry.revs
        if not revs:
            self._dead.remove(key)
            revs.append(rev)
            entry.created = main
            entry.version = 1
            return main, 1, None
        previous = revs[-1]
        assert previous < rev, (previous, rev)
        revs.append(rev)
        entry.version = version = entry.version + 1
        return entry.created, version, previous

    def delete(self, key: bytes, tombstone: RevKey) -> None:
        """End the life of a live key."""
        entry = self._tree[key]
        if isinstance(entry, bytes):
            entry = KeyIndex([cast(RevKey, entry)], 0, 0)
            self._tree[key] = entry
        entry.end_life(tombstone)
        self._dead.insert(key)

    def _values(self, key: bytes, end: bytes) -> Iterable[Entry]:
        if end == TO_THE_END:
            return cast(Iterable[Entry], self._tree.values(key))
        return cast(Iterable[Entry], self._tree.values(key, end, False, True))

    def _items(self, key: bytes, end: bytes) -> Iterable[tuple[bytes, Entry]]:
        if end == TO_THE_END:
            return cast(Iterable[tuple[bytes, Entry]], self._tree.items(key))
        return cast(Iterable[tuple[bytes, Entry]], self._tree.items(key, end, False, True))

    def live(self, key: bytes) -> RevKey | None:
        """The current revision of one key."""
        entry = self.get(key)
        if entry is None or isinstance(entry, bytes):
            return entry
        return entry.revs[-1] if entry.revs else None

    def live_at(self, key: bytes, main: int) -> RevKey | None:
        """The revision of one key as of `main`."""
        entry = self.get(key)
        if entry is None:
            return None
        bound = before(main + 1)
        if isinstance(entry, bytes):
            return entry if entry < bound else None
        return entry.live_at(bound)

    def range(self, key: bytes, end: bytes, limit: int = 0) -> list[RevKey]:
        """The current revisions of the live keys in a range, by key; `limit` of them, 0 for all."""
        if not end:
            found = self.live(key)
            return [] if found is None else [found]
        live = (
            entry if type(entry) is bytes else entry.revs[-1]  # type: ignore[union-attr]
            for entry in self._values(key, end)
            if type(entry) is bytes or entry.revs  # type: ignore[union-attr]
        )
        return list(islice(live, limit or None))

    def range_at(self, key: bytes, end: bytes, main: int, limit: int = 0) -> list[RevKey]:
        """The same as of an earlier revision."""
        if not end:
            found = self.live_at(key, main)
            return [] if found is None else [found]
        bound = before(main + 1)
        live = (rev for entry in self._values(key, end) if (rev := _at(entry, bound)) is not None)
        return list(islice(live, limit or None))

    def live_items(self, key: bytes, end: bytes) -> list[tuple[bytes, RevKey]]:
        """Keys and current revisions of the live keys in a range."""
        if not end:
            found = self.live(key)
            return [] if found is None else [(key, found)]
        return [
            (user_key, rev)
            for user_key, entry in self._items(key, end)
            if (rev := _live(entry)) is not None
        ]

    def count(self, key: bytes, end: bytes) -> int:
        """How many live keys a range has; it takes a few ms for a million."""
        if not end:
            return 0 if self.live(key) is None else 1
        if end == TO_THE_END:
            return len(self._tree.keys(key)) - len(self._dead.keys(key))
        bounds = (key, end, False, True)
        return len(self._tree.keys(*bounds)) - len(self._dead.keys(*bounds))

    def count_at(self, key: bytes, end: bytes, main: int) -> int:
        """The same as of an earlier revision: this one walks."""
        if not end:
            return 0 if self.live_at(key, main) is None else 1
        bound = before(main + 1)
        return sum(1 for entry in self._values(key, end) if _at(entry, bound) is not None)

    def slice_after(self, key: bytes | None, size: int) -> list[tuple[bytes, Entry]]:
        """The next entries in key order, for work done in pieces."""
        items = self._tree.items() if key is None else self._tree.items(key, None, True)
        return list(islice(items, size))

    def take_orphans(self, bound: bytes) -> list[RevKey]:
        """Revisions below `bound` that are in the backend and in no entry; forgotten here."""
        taken = [rev for rev in self._orphans if rev < bound]
        self._orphans = [rev for rev in self._orphans if rev >= bound]
        return taken

    def settle(self, key: bytes, entry: KeyIndex) -> None:
        """After compaction: back to the short form, or out of the index, where that is possible."""
        if entry.older:
            return
        if not entry.revs:
            del self._tree[key]
            self._dead.remove(key)
        elif len(entry.revs) == 1:
            self._tree[key] = entry.revs[0]

    def load_all(self, entries: dict[bytes, Entry], orphans: list[RevKey]) -> None:
        """Fill an empty index. `orphans` are revisions in the backend that no entry has."""
        assert not self._tree, "the index is not empty"
        self._orphans = orphans
        self._tree.update(sorted(entries.items(), key=_key))
        self._dead.update(
            key for key, entry in entries.items() if type(entry) is KeyIndex and not entry.revs
        )


def _key(item: tuple[bytes, Entry]) -> bytes:
    return item[0]


def _live(entry: Entry) -> RevKey | None:
    if isinstance(entry, bytes):
        return entry
    return entry.revs[-1] if entry.revs else None


def _at(entry: Entry, bound: bytes) -> RevKey | None:
    if isinstance(entry, bytes):
        return entry if entry < bound else None
    return entry.live_at(bound)
