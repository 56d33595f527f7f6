"""Reads a bolt file bucket by bucket, one page at a time, and trusts nothing in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from kvorum.snap.bolt import (
    BRANCH,
    BRANCH_ELEMENT,
    BUCKET_FLAG,
    BUCKET_HEAD,
    ELEMENT_SIZE,
    LEAF,
    LEAF_ELEMENT,
    MAX_KEY,
    MAX_PAGE_SIZE,
    META_SIZE,
    MIN_PAGE_SIZE,
    PAGE_HEAD,
    Meta,
    decode_meta,
)
from kvorum.snap.errors import BoltError, BoltLocked

MAX_DEPTH: Final = 48
"""Levels of a tree. Two children a page reach a fourth of all memory addresses with that."""

MAX_RUN: Final = 1 << 28
"""Bytes of one page with its overflow: room for the largest request that a server would take."""

MAX_BUCKETS: Final = 4096
"""etcd has ten."""

_META_PAGES: Final = 2

Item = tuple[bytes, bytes]


class _Bucket(NamedTuple):
    """Where a bucket's tree starts; ``inline`` is its only page if ``root`` is 0."""

    root: int
    inline: bytes


class _Page(NamedTuple):
    id: int
    """0 for the page of an inline bucket."""
    flags: int
    entries: int
    data: bytes
    """With the header and the overflow."""


class BoltFile:
    """A bolt file open for reading, under the shared lock that keeps writers of bbolt out.

    Memory: a page for each level of the tree. Raises `BoltError` for a file that is not sound, on
    opening or when the bad page is reached: pages outside the file, pages used twice (so no cycle
    is ever followed), keys out of order, elements that reach beyond their page.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.pages_read = _META_PAGES
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BoltLocked(self.path, "open for writing in another process") from None
            self.size = os.fstat(self._fd).st_size
            self.meta = self._find_meta()
            self._check_meta()
            self._buckets = self._read_buckets()
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def page_size(self) -> int:
        return self.meta.page_size

    @property
    def db_size(self) -> int:
        """Bytes up to the high water mark: what etcd calls the size of the database."""
        return self.meta.high_water * self.meta.page_size

    def buckets(self) -> list[bytes]:
        """The names, in order."""
        return list(self._buckets)

    def items(self, bucket: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of a bucket in key order; KeyError if there is no such bucket."""
        return chain.from_iterable(self._leaf_items(self._buckets[bucket], self._fresh_marks()))

    def batches(self) -> Iterator[tuple[bytes, list[Item]]]:
        """(bucket, items) of the whole file in order, leaf by leaf; none for an empty bucket.
        ``pages_read`` tells how far it has come."""
        marks = self._fresh_marks()
        for name, bucket in self._buckets.items():
            for items in self._leaf_items(bucket, marks):
                if items:
                    yield name, items

    def all_items(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """(bucket, key, value) of the whole file, in order."""
        for name, items in self.batches():
            for key, value in items:
                yield name, key, value

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Finding the way in.

    def _find_meta(self) -> Meta:
        """The valid meta of the newer transaction. Where the second one is depends on the page
        size, which a damaged first one does not tell."""
        try:
            first = self._meta_at(0)
        except ValueError as error:
            return self._find_second_meta(str(error))
        try:
            second = self._meta_at(first.page_size)
        except ValueError:
            return first
        return max(first, second, key=lambda meta: meta.transaction)

    def _find_second_meta(self, why: str) -> Meta:
        size = MIN_PAGE_SIZE
        while size <= MAX_PAGE_SIZE:
            with suppress(ValueError):
                return self._meta_at(size)
            size *= 2
        raise BoltError(self.path, why)

    def _meta_at(self, offset: int) -> Meta:
        """Raises ValueError."""
        meta = decode_meta(os.pread(self._fd, META_SIZE, offset + PAGE_HEAD.size))
        if offset not in (0, meta.page_size):
            raise ValueError(f"a meta for pages of {meta.page_size} bytes at {offset}")
        return meta

    def _check_meta(self) -> None:
        meta = self.meta
        pages = self.size // meta.page_size
        if meta.high_water > pages:
            why = f"the file ends after {pages} pages, {meta.high_water} are in use"
            raise BoltError(self.path, why)
        if not _META_PAGES <= meta.root < meta.high_water:
            raise BoltError(self.path, f"the root is page {meta.root} of {meta.high_water}")

    def _read_buckets(self) -> dict[bytes, _Bucket]:
        buckets: dict[bytes, _Bucket] = {}
        last = b""
        for page in self._leaves(self.meta.root, self._fresh_marks()):
            items, flagged = self._elements(page, last)
            if len(flagged) < len(items):
                plain = next(name for name, _ in items if name not in flagged)
                raise self._error(f"{plain!r} at the root is no bucket", page)
            for name, value in items:
                if len(value) < BUCKET_HEAD.size:
                    raise self._error(f"bucket {name!r} is cut short", page)
                root, _ = BUCKET_HEAD.unpack_from(value)
                buckets[name] = _Bucket(root, value[BUCKET_HEAD.size :])
                last = name
            if len(buckets) > MAX_BUCKETS:
                raise self._error(f"more than {MAX_BUCKETS} buckets", page)
        return buckets

    # Walking a tree.

    def _leaf_items(self, bucket: _Bucket, marks: bytearray) -> Iterator[list[Item]]:
        """The items of a bucket, leaf by leaf."""
        last = b""
        pages = self._leaves(bucket.root, marks) if bucket.root else self._inline(bucket)
        for page in pages:
            items, flagged = self._elements(page, last)
            if flagged:
                raise self._error(f"{flagged[0]!r} is a bucket within a bucket", page)
            yield items
            if items:
                last = items[-1][0]

    def _inline(self, bucket: _Bucket) -> Iterator[_Page]:
        data = bucket.inline
        if len(data) < PAGE_HEAD.size:
            raise BoltError(self.path, "an inline bucket is cut short")
        _, flags, count, _ = PAGE_HEAD.unpack_from(data)
        if flags != LEAF:
            raise BoltError(self.path, f"an inline bucket with flags {flags:#x}")
        yield _Page(0, flags, count, data)

    def _leaves(self, root: int, marks: bytearray) -> Iterator[_Page]:
        """The leaves under a page, in order. ``marks`` has a bit for each page met so far."""
        stack: list[Iterator[int]] = [iter((root,))]
        while stack:
            child = next(stack[-1], None)
            if child is None:
                stack.pop()
                continue
            page = self._page(child, marks)
            if not page.entries and child != root:
                raise self._error("an empty page below the root", page)
            if page.flags == LEAF:
                yield page
            elif page.flags == BRANCH:
                if len(stack) == MAX_DEPTH:
                    raise self._error(f"more than {MAX_DEPTH} levels", page)
                stack.append(iter(self._children(page)))
            else:
                raise self._error(f"flags {page.flags:#x} within a tree", page)

    def _children(self, page: _Page) -> list[int]:
        self._check_array(page)
        area = memoryview(page.data)[ELEMENT_SIZE : ELEMENT_SIZE * (page.entries + 1)]
        return [child for _, _, child in BRANCH_ELEMENT.iter_unpack(area)]

    def _elements(self, page: _Page, last: bytes) -> tuple[list[Item], list[bytes]]:
        """The items of a leaf, checked to follow ``last`` and to lie inside the page, one behind
        the other: no byte is handed out twice. And the keys of those that are buckets."""
        self._check_array(page)
        data = page.data
        end = len(data)
        at = ELEMENT_SIZE
        taken = ELEMENT_SIZE * (page.entries + 1)
        items, flagged = [], []
        for flags, position, key_size, value_size in LEAF_ELEMENT.iter_unpack(data[at:taken]):
            start = at + position
            middle = start + key_size
            stop = middle + value_size
            if start < taken or stop > end or key_size > MAX_KEY:
                why = f"an element of {key_size} + {value_size} bytes at {start}"
                raise self._error(f"{why}, with {taken} to {end} free", page)
            key = data[start:middle]
            if key <= last:
                raise self._error(f"key {key!r} after {last!r}", page)
            if flags & BUCKET_FLAG:
                flagged.append(key)
            items.append((key, data[middle:stop]))
            last = key
            taken = stop
            at += ELEMENT_SIZE
        return items, flagged

    def _check_array(self, page: _Page) -> None:
        if ELEMENT_SIZE * (page.entries + 1) > len(page.data):
            raise self._error(f"{page.entries} elements do not fit the page", page)

    # Pages.

    def _fresh_marks(self) -> bytearray:
        return bytearray(self.meta.high_water // 8 + 1)

    def _page(self, page: int, marks: bytearray) -> _Page:
        meta = self.meta
        if not _META_PAGES <= page < meta.high_water:
            raise BoltError(self.path, f"page {page} of {meta.high_water} is referred to")
        data = self._read(page * meta.page_size, meta.page_size)
        stored, flags, count, overflow = PAGE_HEAD.unpack_from(data)
        if stored != page:
            raise BoltError(self.path, f"it calls itself page {stored}", page=page)
        if page + overflow >= meta.high_water:
            why = f"its {overflow} overflow pages reach beyond page {meta.high_water}"
            raise BoltError(self.path, why, page=page)
        length = (overflow + 1) * meta.page_size
        if length > MAX_RUN:
            raise BoltError(self.path, f"{length} bytes long, at most {MAX_RUN}", page=page)
        if overflow:
            data = self._read(page * meta.page_size, length)
        self.pages_read += overflow + 1
        for used in range(page, page + overflow + 1):
            if marks[used >> 3] & 1 << (used & 7):
                raise BoltError(self.path, f"page {used} is used twice", page=page)
            marks[used >> 3] |= 1 << (used & 7)
        return _Page(page, flags, count, data)

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) < length:
            raise BoltError(self.path, f"the file ends at {offset + len(data)} while it is read")
        return data

    def _error(self, why: str, page: _Page) -> BoltError:
        return BoltError(self.path, why, page=page.id or None)
