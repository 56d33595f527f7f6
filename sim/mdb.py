"""What members see in place of ``lmdb``: its calls, as far as they are used, on the simulated disk.

What LMDB promises is taken for granted: a transaction is on the platter as a whole when its commit
returns, and a reader sees the database as it was when it began.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, Final

import lmdb

from sim.disk import File
from sim.image import content
from sim.system import System

PAGE: Final = 4096
_PER_PAGE: Final = 16
Items = dict[bytes, bytes]


class Tree:
    """One named database in one state, which is never changed."""

    __slots__ = ("_order", "items")

    def __init__(self, items: Items) -> None:
        self.items = items
        self._order: list[bytes] | None = None

    def order(self) -> list[bytes]:
        if self._order is None:
            self._order = sorted(self.items)
        return self._order


class Contents:
    """What a database file holds, by name of the database."""

    def __init__(self) -> None:
        self.trees: dict[bytes, Tree] = {}

    def copy(self) -> Contents:
        twin = Contents()
        twin.trees = dict(self.trees)
        return twin


class Lmdb:
    """The module."""

    Error = lmdb.Error
    MapFullError = lmdb.MapFullError
    MemoryError = lmdb.MemoryError
    CorruptedError = lmdb.CorruptedError
    DiskError = lmdb.DiskError
    InvalidError = lmdb.InvalidError
    PageNotFoundError = lmdb.PageNotFoundError
    PanicError = lmdb.PanicError
    VersionMismatchError = lmdb.VersionMismatchError

    def __init__(self, system: System) -> None:
        self._system = system

    def open(self, path: str, **options: Any) -> Environment:
        """The file must be there; it is locked already."""
        file = self._system.process.disk.need(path)
        assert isinstance(file, File)
        if file.database is None:
            if file.size:
                file.database = _decode(file)
            else:
                file.database = Contents()
            _resize(file)
        lock = f"{path}-lock"
        if not self._system.os.path.exists(lock):
            self._system.Path(lock).touch()
        return Environment(file, self._system)


class Environment:
    def __init__(self, file: File, system: System) -> None:
        self.file = file
        self._system = system
        self._map_size = 1 << 30

    @property
    def contents(self) -> Contents:
        contents: Contents = self.file.database
        return contents

    def begin(self, db: bytes | None = None, write: bool = False) -> Transaction:
        return Transaction(self, db, write)

    def open_db(self, name: bytes, txn: object = None, create: bool = True) -> bytes:
        self.contents.trees.setdefault(name, Tree({}))
        return name

    def stat(self) -> dict[str, int]:
        return {"psize": PAGE, **_stat(None)}

    def info(self) -> dict[str, int]:
        return {"last_pgno": self.file.size // PAGE - 1, "map_size": self._map_size}

    def set_mapsize(self, size: int) -> None:
        self._map_size = size

    def copyfd(self, fd: int, compact: bool = False) -> None:
        """The copy is a database file at once, as good as synced."""
        target = self._system.file(fd)
        try:
            self._system.process.disk.touched()
        except OSError as error:
            raise lmdb.DiskError(str(error)) from error
        target.database = self.contents.copy()
        _resize(target)

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def committed(self, trees: dict[bytes, Tree]) -> None:
        """A write transaction is done."""
        process = self._system.process
        try:
            process.disk.touched()
        except OSError as error:
            raise lmdb.DiskError(str(error)) from error
        process.disk.spent += process.sync_cost()
        self.contents.trees.update(trees)
        _resize(self.file)


class Transaction:
    """``get`` is made for the one database that is read most."""

    def __init__(self, environment: Environment, db: bytes | None, write: bool) -> None:
        self._environment = environment
        self._write = write
        self._trees = dict(environment.contents.trees)
        self._changed: dict[bytes, Tree] = {}
        self._main = self._trees[db].items if db is not None else {}

    def trees(self) -> dict[bytes, Tree]:
        """All that it sees."""
        return self._trees

    def get(
        self, key: bytes, default: bytes | None = None, db: bytes | None = None
    ) -> bytes | None:
        items = self._main if db is None else self._trees[db].items
        return items.get(key, default)

    def delete(self, key: bytes, db: bytes) -> bool:
        return self._changing(db).pop(key, None) is not None

    def put(self, key: bytes, value: bytes, db: bytes) -> bool:
        self._changing(db)[key] = value
        return True

    def _changing(self, db: bytes) -> Items:
        tree = self._changed.get(db)
        if tree is None:
            tree = self._changed[db] = self._trees[db] = Tree(dict(self._trees[db].items))
        return tree.items

    def cursor(self, db: bytes | None = None) -> Cursor:
        return Cursor(self, db)

    def tree(self, db: bytes | None) -> Tree:
        if db is None:
            return Tree(dict.fromkeys(self._trees, b""))
        return self._trees[db]

    def put_many(self, db: bytes, items: Iterable[tuple[bytes, bytes]]) -> int:
        pairs = dict(items)
        if pairs:
            self._changing(db).update(pairs)
        return len(pairs)

    def stat(self, db: bytes | None = None) -> dict[str, int]:
        return _stat(None if db is None else self._trees[db])

    def commit(self) -> None:
        if self._changed:
            self._environment.committed(self._changed)

    def abort(self) -> None:
        self._changed = {}

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._write and kind is None:
            self.commit()


class Cursor:
    def __init__(self, transaction: Transaction, db: bytes | None) -> None:
        self._transaction = transaction
        self._db = db
        self._first = b""

    def set_range(self, key: bytes) -> bool:
        order = self._transaction.tree(self._db).order()
        self._first = key
        return bool(order) and order[-1] >= key

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        tree = self._transaction.tree(self._db)
        items = tree.items
        for key in tree.order()[bisect_left(tree.order(), self._first) :]:
            yield key, items[key]

    def putmulti(
        self, items: Iterable[tuple[bytes, bytes]], append: bool = False
    ) -> tuple[int, int]:
        assert self._db is not None
        count = self._transaction.put_many(self._db, items)
        return count, count

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""


def _stat(tree: Tree | None) -> dict[str, int]:
    entries = 0 if tree is None else len(tree.items)
    leaves = entries // _PER_PAGE + (entries > 0)
    return {"branch_pages": 0, "leaf_pages": leaves, "overflow_pages": 0, "entries": entries}


def _resize(file: File) -> None:
    """The size of a file that holds so much, on cache and platter alike."""
    entries = sum(len(tree.items) for tree in file.database.trees.values())
    file.resize((entries // _PER_PAGE + 8) * PAGE)
    file.sync()


def _decode(file: File) -> Contents:
    contents = Contents()
    for name, items in content(file.read(0, file.size)).items():
        contents.trees[name] = Tree(items)
    return contents
