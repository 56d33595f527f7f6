"""Writes a whole bolt file from sorted keys, page after page, in bounded memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from kvorum.snap.bolt import (
    BRANCH,
    BRANCH_ELEMENT,
    BUCKET_FLAG,
    BUCKET_HEAD,
    ELEMENT_SIZE,
    LEAF,
    MAX_ELEMENTS,
    MAX_KEY,
    MAX_PAGE_SIZE,
    MAX_VALUE,
    META,
    MIN_PAGE_SIZE,
    NO_FREELIST,
    PAGE_HEAD,
    Meta,
)
from kvorum.wal.files import fsync_directory

PAGE_SIZE: Final = 4096
FILL: Final = 0.9
"""Share of a page that is filled, so that a later write does not split every page."""

_MIN_ELEMENTS: Final = 2
"""bbolt wants two keys on a page, however long they are."""

_WRITE_BUFFER: Final = 1 << 20


class BoltWriter:
    """Makes a file that bbolt opens. Buckets may come in any order, their keys must be sorted.

    ::

        with BoltWriter(path) as writer:
            writer.add_bucket(b"key", items)

    The file is complete, and with ``sync`` on disk, when the block ends; after an error it is
    removed. Raises ValueError for keys or values that bolt does not take, FileExistsError, OSError.
    """

    def __init__(self, path: Path, *, page_size: int = PAGE_SIZE, sync: bool = True) -> None:
        if page_size & page_size - 1 or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
            raise ValueError(f"a page size of {page_size}")
        self._path = path
        self._sync = sync
        self._buckets: dict[bytes, bytes] = {}
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "w+b", _WRITE_BUFFER)
        self._pages = _PageFile(self._file, page_size)

    def add_bucket(self, name: bytes, items: Iterable[tuple[bytes, bytes]]) -> int:
        """Write a bucket; the number of its keys. Keys must ascend, and not be empty."""
        if name in self._buckets:
            raise ValueError(f"bucket {name!r} is there already")
        if not name or len(name) > MAX_KEY:
            raise ValueError(f"a bucket name of {len(name)} bytes")
        tree = _Tree(self._pages, 0)
        count = 0
        last = b""
        add = tree.add
        for key, value in items:
            if key <= last:
                raise ValueError(f"bucket {name!r}: key {key!r} after {last!r}")
            if len(key) > MAX_KEY or len(value) > MAX_VALUE:
                raise ValueError(f"bucket {name!r}: {len(key)} bytes key, {len(value)} value")
            add(key, value)
            last = key
            count += 1
        self._buckets[name] = tree.finish_bucket()
        return count

    def close(self) -> None:
        """Write the root and both metas, and sync."""
        tree = _Tree(self._pages, BUCKET_FLAG)
        for name, value in sorted(self._buckets.items()):
            tree.add(name, value)
        self._pages.write_metas(tree.finish())
        self._file.flush()
        if self._sync:
            os.fsync(self._file.fileno())
        self._file.close()
        if self._sync:
            fsync_directory(self._path.parent)

    def abandon(self) -> None:
        self._file.close()
        self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abandon()
            return
        try:
            self.close()
        except BaseException:
            self.abandon()
            raise


class _PageFile:
    """Hands out page ids in the order in which the pages are written."""

    def __init__(self, file: BinaryIO, page_size: int) -> None:
        self.page_size = page_size
        self._file = file
        self._next = 2
        file.write(bytes(2 * page_size))

    def write(self, flags: int, count: int, body: bytes) -> int:
        """Write a page, with as much overflow as it takes; its id."""
        page = self._next
        length = PAGE_HEAD.size + len(body)
        pages = -(-length // self.page_size)
        self._file.write(PAGE_HEAD.pack(page, flags, count, pages - 1))
        self._file.write(body)
        self._file.write(bytes(pages * self.page_size - length))
        self._next += pages
        return page

    def write_metas(self, root: int) -> None:
        for transaction in (0, 1):
            meta = Meta(self.page_size, root, NO_FREELIST, self._next, transaction)
            self._file.seek(transaction * self.page_size)
            self._file.write(PAGE_HEAD.pack(transaction, META, 0, 0) + meta.encode())


class _Tree:
    """A tree that grows at its right edge: one page under construction for each level."""

    def __init__(self, pages: _PageFile, flags: int) -> None:
        self._pages = pages
        self._flags = flags
        self._limit = int(pages.page_size * FILL)
        self._keys: list[bytes] = []
        self._values: list[bytes] = []
        self._size = PAGE_HEAD.size
        self._branches: list[_Branch] = []

    def add(self, key: bytes, value: bytes) -> None:
        size = ELEMENT_SIZE + len(key) + len(value)
        if self._size + size > self._limit and len(self._keys) >= _MIN_ELEMENTS:
            first = self._keys[0]
            self._add_child(0, first, self._write_leaf())
        self._keys.append(key)
        self._values.append(value)
        self._size += size
        assert len(self._keys) <= MAX_ELEMENTS

    def finish(self) -> int:
        """The root's page id."""
        branches = self._branches
        if not branches:
            return self._write_leaf()
        first = self._keys[0]
        page = self._write_leaf()
        self._add_child(0, first, page)
        level = 0
        while True:
            first, page = branches[level].write(self._pages)
            level += 1
            if level == len(branches):
                return page
            self._add_child(level, first, page)

    def finish_bucket(self) -> bytes:
        """The bucket's value in the root tree: its root's page id, or all of it if it is small."""
        if not self._branches and self._size <= self._pages.page_size // 4:
            head = PAGE_HEAD.pack(0, LEAF, len(self._keys), 0)
            return BUCKET_HEAD.pack(0, 0) + head + self._leaf_body()
        return BUCKET_HEAD.pack(self.finish(), 0)

    def _add_child(self, level: int, first: bytes, page: int) -> None:
        if level == len(self._branches):
            self._branches.append(_Branch())
        branch = self._branches[level]
        is_full = branch.size + ELEMENT_SIZE + len(first) > self._limit
        if is_full and len(branch.keys) >= _MIN_ELEMENTS:
            self._add_child(level + 1, *branch.write(self._pages))
        branch.add(first, page)

    def _write_leaf(self) -> int:
        page = self._pages.write(LEAF, len(self._keys), self._leaf_body())
        self._keys.clear()
        self._values.clear()
        self._size = PAGE_HEAD.size
        return page

    def _leaf_body(self) -> bytes:
        """Elements, each with the distance from itself to its key, then keys and values."""
        keys, values = self._keys, self._values
        numbers: list[int] = []
        at = ELEMENT_SIZE * len(keys)
        for key, value in zip(keys, values, strict=True):
            numbers += (self._flags, at, len(key), len(value))
            at += len(key) + len(value) - ELEMENT_SIZE
        elements = struct.pack(f"<{len(numbers)}I", *numbers)
        return elements + b"".join(part for pair in zip(keys, values, strict=True) for part in pair)


class _Branch:
    """A branch page under construction: its children's first keys and page ids."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self._children: list[int] = []
        self.size = PAGE_HEAD.size

    def add(self, first: bytes, page: int) -> None:
        self.keys.append(first)
        self._children.append(page)
        self.size += ELEMENT_SIZE + len(first)

    def write(self, pages: _PageFile) -> tuple[bytes, int]:
        """(first key, page id) of the page, which is then begun anew."""
        first = self.keys[0]
        elements = []
        at = ELEMENT_SIZE * len(self.keys)
        for key, child in zip(self.keys, self._children, strict=True):
            elements.append(BRANCH_ELEMENT.pack(at, len(key), child))
            at += len(key) - ELEMENT_SIZE
        body = b"".join(elements) + b"".join(self.keys)
        page = pages.write(BRANCH, len(self.keys), body)
        self.keys.clear()
        self._children.clear()
        self.size = PAGE_HEAD.size
        return first, page
