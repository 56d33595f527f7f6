"""Writes a whole bolt file from sorted keys, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kvorum.snap.bolt import MAX_KEY, MAX_PAGE_SIZE, MIN_PAGE_SIZE
from kvorum.snap.bolt_tree import Item, Tree, WrittenPages, metas, put_root
from kvorum.wal.files import fsync_directory

PAGE_SIZE: Final = 4096

_BATCH_ITEMS: Final = 512
_BATCH_BYTES: Final = 1 << 20
_WRITE_SIZE: Final = 1 << 20


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
        self._file = os.fdopen(fd, "w+b")
        self._pages = WrittenPages(page_size)
        self._file.write(bytes(2 * page_size))

    def add_bucket(self, name: bytes, items: Iterable[Item]) -> int:
        """Write a bucket; the number of its keys. Keys must ascend, and not be empty."""
        if name in self._buckets:
            raise ValueError(f"bucket {name!r} is there already")
        if not name or len(name) > MAX_KEY:
            raise ValueError(f"a bucket name of {len(name)} bytes")
        tree = Tree(self._pages)
        count = 0
        for batch in _batches(items):
            try:
                tree.add(batch)
            except ValueError as error:
                raise ValueError(f"bucket {name!r}: {error}") from None
            count += len(batch)
            if self._pages.waiting >= _WRITE_SIZE:
                self._file.write(self._pages.take())
        self._buckets[name] = tree.finish_bucket()
        return count

    def close(self) -> None:
        """Write the root and both metas, and sync."""
        pages = self._pages
        put_root(pages, self._buckets)
        self._file.write(pages.take())
        self._file.seek(0)
        self._file.write(metas(pages.page_size, pages.root, pages.next))
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


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1])
        if len(batch) == _BATCH_ITEMS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch
