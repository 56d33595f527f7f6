"""Ranges of keys, and which of them hold a given key."""

from __future__ import annotations

import random
from typing import Generic, TypeVar

T = TypeVar("T")


class _Node(Generic[T]):
    """One range. ``reach`` is the highest end below and including this node, b"" when one of them
    has no end; the subtree holds no key at or above it."""

    __slots__ = ("end", "left", "priority", "reach", "right", "start", "value")

    def __init__(self, start: bytes, end: bytes, value: T, priority: float) -> None:
        self.start = start
        self.end = end
        self.value = value
        self.priority = priority
        self.reach = end
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None


class IntervalMap(Generic[T]):
    """Values by half-open range [start, end); the end b"" stands for no end.

    A treap in the order of (start, end): O(log n) to add and to remove, O(log n + hits) to look up
    in the usual case of ranges that overlap little. The priorities come from a seeded generator, so
    that the shape depends on nothing but the calls.
    """

    __slots__ = ("_random", "_root", "_size")

    def __init__(self) -> None:
        self._root: _Node[T] | None = None
        self._size = 0
        self._random = random.Random(0).random

    def __len__(self) -> int:
        return self._size

    def add(self, start: bytes, end: bytes, value: T) -> None:
        """Add a range that is not there yet."""
        node = _Node(start, end, value, self._random())
        self._root = _insert(self._root, node)
        self._size += 1

    def remove(self, start: bytes, end: bytes) -> None:
        """Remove a range.

        Raises:
            KeyError: it is not there.
        """
        self._root = _remove(self._root, start, end)
        self._size -= 1

    def stab(self, key: bytes) -> list[T]:
        """The values of all ranges that hold ``key``."""
        hits: list[T] = []
        later: list[_Node[T]] = []
        node = self._root
        while True:
            while node is not None and (not node.reach or node.reach > key):
                if node.start <= key:
                    if not node.end or node.end > key:
                        hits.append(node.value)
                    if node.right is not None:
                        later.append(node.right)
                node = node.left
            if not later:
                return hits
            node = later.pop()


def _insert(root: _Node[T] | None, node: _Node[T]) -> _Node[T]:
    if root is None:
        return node
    if node.priority > root.priority:
        node.left, node.right = _split(root, node.start, node.end)
        return _pull(node)
    order = (node.start, node.end)
    assert order != (root.start, root.end), f"range {order} added twice"
    if order < (root.start, root.end):
        root.left = _insert(root.left, node)
    else:
        root.right = _insert(root.right, node)
    return _pull(root)


def _remove(root: _Node[T] | None, start: bytes, end: bytes) -> _Node[T] | None:
    if root is None:
        raise KeyError((start, end))
    if (start, end) == (root.start, root.end):
        return _join(root.left, root.right)
    if (start, end) < (root.start, root.end):
        root.left = _remove(root.left, start, end)
    else:
        root.right = _remove(root.right, start, end)
    return _pull(root)


def _split(
    root: _Node[T] | None, start: bytes, end: bytes
) -> tuple[_Node[T] | None, _Node[T] | None]:
    """The nodes before (start, end), and those after it."""
    if root is None:
        return None, None
    assert (start, end) != (root.start, root.end), f"range {(start, end)} added twice"
    if (root.start, root.end) < (start, end):
        root.right, after = _split(root.right, start, end)
        return _pull(root), after
    before, root.left = _split(root.left, start, end)
    return before, _pull(root)


def _join(before: _Node[T] | None, after: _Node[T] | None) -> _Node[T] | None:
    if before is None or after is None:
        return before if after is None else after
    if before.priority > after.priority:
        before.right = _join(before.right, after)
        return _pull(before)
    after.left = _join(before, after.left)
    return _pull(after)


def _pull(node: _Node[T]) -> _Node[T]:
    """Work out ``reach`` anew from the children."""
    reach = node.end
    for child in (node.left, node.right):
        if child is not None and reach and (not child.reach or child.reach > reach):
            reach = child.reach
    node.reach = reach
    return node
