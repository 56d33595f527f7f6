"""The index: user key -> where its revisions are, in memory, ordered by key.

Most keys have exactly one revision, and for them the entry is just that RevKey (a live one, never
a tombstone). A key with more has a `History`. The keys among these that are deleted now are also
in a set of their own, so that counting live keys is a subtraction and not a walk.

Ranges are etcd's: an empty end means the one key, an end of one zero byte means to the last key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, cast

from BTrees.OOBTree import OOTreeSet

from kvorum.mvcc.history import (
    HEAD,
    SLOT,
    History,
    append_put,
    append_tombstone,
    cut_at,
    is_dead,
    keep_from,
    live_at,
    new_history,
    newest,
)
from kvorum.mvcc.kv import create_and_version
from kvorum.mvcc.revision import before
from kvorum.mvcc.tree import Tree, build
from kvorum.types import RevKey

Entry = RevKey | History
TO_THE_END: Final = b"\x00"


_ALL_PLAIN: Final[frozenset[type]] = frozenset({bytes})


class Index:
    """`load` gives the record of a revision, for the create revision and version of a key that is
    written a second time."""

    def __init__(self, load: Callable[[RevKey], bytes]) -> None:
        self._load = load
        self._dead = OOTreeSet()
        self._orphans: list[RevKey] = []
        self._use(Tree())

    def _use(self, tree: Tree) -> None:
        self._tree = tree
        self.setdefault: Callable[[bytes, RevKey], Entry] = tree.setdefault
        """``setdefault(key, rev)`` is the first half of a put: it is done if `rev` comes back."""
        self.get: Callable[[bytes], Entry | None] = tree.get

    def __len__(self) -> int:
        """How many keys are live."""
        return len(self._tree) - len(self._dead)

    def overwrite(
        self, key: bytes, entry: Entry, rev: RevKey, main: int
    ) -> tuple[int, int, RevKey | None]:
        """The second half of a put, for a key that has an entry: create revision and version of
        the new revision, and the live one before it."""
        if isinstance(entry, bytes):
            create, version = create_and_version(self._load(entry))
            entry = new_history(entry, create, version)
            self._tree[key] = entry
        elif is_dead(entry):
            self._dead.remove(key)
        return append_put(entry, rev, main)

    def delete(self, key: bytes, tombstone: RevKey) -> None:
        """End the life of a live key."""
        entry = self._tree[key]
        if isinstance(entry, bytes):
            entry = new_history(cast(RevKey, entry), 0, 0)
            self._tree[key] = entry
        append_tombstone(entry, tombstone)
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
        return None if entry is None else _live(entry)

    def live_at(self, key: bytes, main: int) -> RevKey | None:
        """The revision of one key as of `main`."""
        entry = self.get(key)
        if entry is None:
            return None
        return _live_at(entry, before(main + 1))

    def range(self, key: bytes, end: bytes, limit: int = 0) -> list[RevKey]:
        """The current revisions of the live keys in a range, by key; `limit` of them
        (0 or less: all)."""
        if not end:
            found = self.live(key)
            return [] if found is None else [found]
        most = limit if limit > 0 else None
        entries = list(islice(self._values(key, end), most))
        if _ALL_PLAIN.issuperset(map(type, entries)):
            return cast(list[RevKey], entries)  # no history among them: nothing to look into
        live = (
            entry if type(entry) is bytes else bytes(entry[-SLOT:-1])
            for entry in self._values(key, end)
            if type(entry) is bytes or not entry[-1]
        )
        return cast(list[RevKey], list(islice(live, most)))

    def range_at(self, key: bytes, end: bytes, main: int, limit: int = 0) -> list[RevKey]:
        """The same as of an earlier revision."""
        if not end:
            found = self.live_at(key, main)
            return [] if found is None else [found]
        bound = before(main + 1)
        live = (
            rev for entry in self._values(key, end) if (rev := _live_at(entry, bound)) is not None
        )
        return list(islice(live, limit if limit > 0 else None))

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
        entries = list(self._values(key, end))
        histories = [entry for entry in entries if isinstance(entry, History)]
        single = [entry for entry in entries if isinstance(entry, bytes)]
        alive = sum(1 for history in histories if live_at(history, bound) is not None)
        return alive + sum(map(bound.__gt__, single))

    def slice_after(self, key: bytes | None, size: int) -> list[tuple[bytes, Entry]]:
        """The next entries in key order, for work done in pieces."""
        items = self._tree.items() if key is None else self._tree.items(key, None, True)
        return list(islice(items, size))

    def take_orphans(self, bound: bytes) -> list[RevKey]:
        """Revisions below `bound` that are in the backend and in no entry; forgotten here."""
        taken = [rev for rev in self._orphans if rev < bound]
        self._orphans = [rev for rev in self._orphans if rev >= bound]
        return taken

    def compact(self, key: bytes, entry: History, at: int) -> tuple[int, bool]:
        """Forget what a compaction at `at` need not keep of a key: the offset in `entry`, which is
        no longer the index's, up to which slots are forgotten, and whether one at or before `at`
        is left."""
        cut, kept = cut_at(entry, at)
        if cut == len(entry):
            del self._tree[key]
            self._dead.remove(key)
        elif cut + SLOT == len(entry) and not is_dead(entry):
            self._tree[key] = newest(entry)
        elif cut > HEAD:
            self._tree[key] = keep_from(entry, cut)
        return cut, kept

    def load_all(self, entries: dict[bytes, Entry], orphans: list[RevKey]) -> None:
        """Fill an empty index. `orphans` are revisions in the backend that no entry has."""
        assert not self._tree, "the index is not empty"
        self._orphans = orphans
        keys = sorted(entries)
        self._use(build(keys, list(map(entries.__getitem__, keys))))
        self._dead.update(
            key for key, entry in entries.items() if type(entry) is History and is_dead(entry)
        )


def _live(entry: Entry) -> RevKey | None:
    if isinstance(entry, bytes):
        return entry
    return None if entry[-1] else newest(entry)


def _live_at(entry: Entry, bound: bytes) -> RevKey | None:
    if isinstance(entry, bytes):
        return entry if entry < bound else None
    return live_at(entry, bound)
