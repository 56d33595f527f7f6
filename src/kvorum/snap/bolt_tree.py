"""Lays out bolt trees from sorted keys: which pages there are, in which order, and their bytes.

Items come in batches and are handled column by column, because one at a time would cost a
microsecond each in Python, which is seconds for a gigabyte. `Pages` only counts, which tells how
large a file will be; `WrittenPages` makes the bytes. Both give the same items the same places.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import accumulate, chain, repeat
from operator import add, lt, sub
from typing import Final

from kvorum.snap.bolt import (
    BRANCH,
    BRANCH_ELEMENT,
    BUCKET_FLAG,
    BUCKET_HEAD,
    ELEMENT_SIZE,
    LEAF,
    MAX_ELEMENTS,
    MAX_KEY,
    MAX_VALUE,
    META,
    NO_FREELIST,
    PAGE_HEAD,
    Meta,
)

Item = tuple[bytes, bytes]

FIRST_PAGE: Final = 2
"""Behind the two metas."""

FILL: Final = 0.9
"""Share of a page that is filled, so that a later write does not split every page."""

_MIN_ELEMENTS: Final = 2
"""bbolt wants two keys on a page, however long they are."""


def metas(page_size: int, root: int, high_water: int) -> bytes:
    """The first two pages of a file."""
    pages = b""
    for transaction in (0, 1):
        meta = Meta(page_size, root, NO_FREELIST, high_water, transaction)
        page = PAGE_HEAD.pack(transaction, META, 0, 0) + meta.encode()
        pages += page.ljust(page_size, b"\0")
    return pages


class Batch:
    """Sorted items as columns, to cut leaves out of."""

    __slots__ = ("_key_sizes", "_offsets", "_parts", "_value_sizes", "count", "items", "keys")

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.count = len(items)
        self._parts = list(chain.from_iterable(items))
        self.keys = self._parts[::2]
        sizes = list(map(len, self._parts))
        self._key_sizes = sizes[::2]
        self._value_sizes = sizes[1::2]
        both = map(add, self._key_sizes, self._value_sizes)
        self._offsets: list[int] = list(accumulate(map(add, both, repeat(ELEMENT_SIZE)), initial=0))

    def check(self, last: bytes) -> None:
        """Whether bolt takes these items behind the key ``last``. Raises ValueError."""
        keys = self.keys
        if keys and not (keys[0] > last and all(map(lt, keys, keys[1:]))):
            before = [last, *keys]
            wrong = next(i for i, key in enumerate(keys) if key <= before[i])
            raise ValueError(f"key {keys[wrong]!r} after {before[wrong]!r}")
        longest = max(self._key_sizes, default=0), max(self._value_sizes, default=0)
        if longest[0] > MAX_KEY or longest[1] > MAX_VALUE:
            raise ValueError(f"up to {longest[0]} bytes key, {longest[1]} value")

    def cut(self, start: int, room: int) -> int:
        """Where the leaf that begins at ``start`` ends, with ``room`` bytes behind its header; the
        end of the batch if what comes next may belong to it too."""
        offsets = self._offsets
        stop = bisect_right(offsets, offsets[start] + room, start) - 1
        if stop < start + _MIN_ELEMENTS:
            stop = start + _MIN_ELEMENTS
        elif stop > start + MAX_ELEMENTS:
            stop = start + MAX_ELEMENTS
        return stop if stop < self.count else self.count

    def length(self, start: int, stop: int) -> int:
        """Bytes of a leaf's page, header included."""
        size: int = PAGE_HEAD.size + self._offsets[stop] - self._offsets[start]
        return size

    def body(self, start: int, stop: int, flags: int) -> list[bytes]:
        """A leaf's page behind its header: elements, each with the distance from itself to its key,
        then keys and values."""
        count = stop - start
        offsets = self._offsets
        # The distances are the offsets, less 16 for each element before this one (twice, since
        # elements and offsets both count them), plus 16 for each from this one on.
        base = offsets[start] - ELEMENT_SIZE * count
        numbers = [flags] * (4 * count)
        numbers[1::4] = map(sub, offsets[start:stop], range(base, base + 32 * count, 32))
        numbers[2::4] = self._key_sizes[start:stop]
        numbers[3::4] = self._value_sizes[start:stop]
        return [struct.pack(f"<{4 * count}I", *numbers), *self._parts[2 * start : 2 * stop]]


class Branch:
    """A branch page under construction: its children's first keys and page ids."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self._children: list[int] = []
        self.length = PAGE_HEAD.size

    def add(self, first: bytes, page: int) -> None:
        self.keys.append(first)
        self._children.append(page)
        self.length += ELEMENT_SIZE + len(first)

    def body(self) -> list[bytes]:
        """The page behind its header."""
        elements = []
        at = ELEMENT_SIZE * len(self.keys)
        for key, child in zip(self.keys, self._children, strict=True):
            elements.append(BRANCH_ELEMENT.pack(at, len(key), child))
            at += len(key) - ELEMENT_SIZE
        return elements + self.keys

    def clear(self) -> None:
        self.keys.clear()
        self._children.clear()
        self.length = PAGE_HEAD.size


class Pages:
    """Gives pages their places, in the order in which they come, and counts them.

    ``next`` is the page after the last one, ``root`` the root tree's page once that is put.
    """

    checks = False
    """Whether items are looked at closely."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.next = FIRST_PAGE
        self.root = 0

    def leaf(self, batch: Batch, start: int, stop: int, flags: int) -> int:
        """Put a leaf; its page id."""
        return self._take(batch.length(start, stop))

    def branch(self, branch: Branch) -> int:
        """Put a branch page; its id."""
        return self._take(branch.length)

    def _take(self, length: int) -> int:
        page = self.next
        self.next = page + -(-length // self.page_size)
        return page


class WrittenPages(Pages):
    """Pages as bytes, to be taken by the owner in order."""

    checks = True

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        self._parts: list[bytes] = []
        self._taken = FIRST_PAGE

    @property
    def waiting(self) -> int:
        """Bytes that `take` would give."""
        return (self.next - self._taken) * self.page_size

    def take(self) -> bytes:
        """All pages that were not taken yet."""
        parts, self._parts = self._parts, []
        self._taken = self.next
        return b"".join(parts)

    def leaf(self, batch: Batch, start: int, stop: int, flags: int) -> int:
        length = batch.length(start, stop)
        return self._put(LEAF, stop - start, length, batch.body(start, stop, flags))

    def branch(self, branch: Branch) -> int:
        return self._put(BRANCH, len(branch.keys), branch.length, branch.body())

    def _put(self, flags: int, count: int, length: int, body: list[bytes]) -> int:
        page = self._take(length)
        pages = self.next - page
        parts = self._parts
        parts.append(PAGE_HEAD.pack(page, flags, count, pages - 1))
        parts += body
        parts.append(bytes(pages * self.page_size - length))
        return page


class Tree:
    """A tree that grows at its right edge: one page under construction for each level."""

    def __init__(self, pages: Pages, flags: int = 0) -> None:
        self._pages = pages
        self._flags = flags
        self._limit = int(pages.page_size * FILL)
        self._rest: list[Item] = []
        self._last = b""
        self._branches: list[Branch] = []

    def add(self, items: list[Item]) -> None:
        """The next items. Raises ValueError for such as bolt does not take, or out of order."""
        batch = Batch(self._rest + items)
        if self._pages.checks:
            batch.check(self._last)
        start, count, room = 0, batch.count, self._limit - PAGE_HEAD.size
        while (stop := batch.cut(start, room)) < count:
            self._add_leaf(batch, start, stop)
            start = stop
        if start:
            self._last = batch.keys[start - 1]
        self._rest = batch.items[start:]

    def finish(self) -> int:
        """The root's page id."""
        batch = Batch(self._rest)
        count = batch.count
        if not self._branches:
            return self._pages.leaf(batch, 0, count, self._flags)
        self._add_leaf(batch, 0, count)
        level = 0
        while True:
            first, page = self._put_branch(level)
            level += 1
            if level == len(self._branches):
                return page
            self._add_child(level, first, page)

    def finish_bucket(self) -> bytes:
        """The bucket's value in the root tree: its root's page id, or all of it if it is small."""
        batch = Batch(self._rest)
        count = batch.count
        if not self._branches and batch.length(0, count) <= self._pages.page_size // 4:
            head = PAGE_HEAD.pack(0, LEAF, count, 0)
            return BUCKET_HEAD.pack(0, 0) + head + b"".join(batch.body(0, count, self._flags))
        return BUCKET_HEAD.pack(self.finish(), 0)

    def _add_leaf(self, batch: Batch, start: int, stop: int) -> None:
        page = self._pages.leaf(batch, start, stop, self._flags)
        self._add_child(0, batch.keys[start], page)

    def _add_child(self, level: int, first: bytes, page: int) -> None:
        if level == len(self._branches):
            self._branches.append(Branch())
        branch = self._branches[level]
        is_full = branch.length + ELEMENT_SIZE + len(first) > self._limit
        if is_full and len(branch.keys) >= _MIN_ELEMENTS:
            self._add_child(level + 1, *self._put_branch(level))
        branch.add(first, page)

    def _put_branch(self, level: int) -> tuple[bytes, int]:
        """(first key, page id) of the branch page, which is then begun anew."""
        branch = self._branches[level]
        first = branch.keys[0]
        page = self._pages.branch(branch)
        branch.clear()
        return first, page


def put_root(pages: Pages, buckets: dict[bytes, bytes]) -> None:
    """Put the root tree, made of the buckets' values by name."""
    tree = Tree(pages, BUCKET_FLAG)
    tree.add(sorted(buckets.items()))
    pages.root = tree.finish()
