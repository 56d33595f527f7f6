"""A member's disk: a tree of files of which only what was synced outlives a power cut.

The cache and the platter are kept apart. A write, a truncation or a name goes into the cache, and
to the platter with the next sync of its file or directory. When the power goes, of what was not
synced an arbitrary first part has got there by itself: of each file its first few writes, the last
of them cut off at a sector; of each directory its first few changes. POSIX leaves that open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from random import Random
from typing import Any, Final

SECTOR: Final = 512


class PowerCut(BaseException):
    """The process ends here and now. No ordinary handler may catch it."""


class File:
    """Bytes; beyond ``data`` and below ``size`` they are zeros."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.data = bytearray()
        self.size = 0
        self.lock: object = None
        self.database: Any = None
        """What the simulated LMDB keeps of a database file; always as on the platter."""
        self._stable = bytearray()
        self._stable_size = 0
        self._pending: list[tuple[int, bytes | None]] = []  # (offset, data), or (size, None)

    def read(self, offset: int, count: int) -> bytes:
        count = max(0, min(count, self.size - offset))
        held = bytes(self.data[offset : offset + count])
        return held + bytes(count - len(held))

    def write(self, offset: int, data: bytes) -> None:
        _put(self.data, offset, data)
        self.size = max(self.size, offset + len(data))
        self._pending.append((offset, data))

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.size = size
        self._pending.append((size, None))

    def sync(self) -> None:
        for place, data in self._pending:
            self._apply(place, data)
        self._pending.clear()

    def _apply(self, place: int, data: bytes | None) -> None:
        if data is None:
            del self._stable[place:]
            self._stable_size = place
        else:
            _put(self._stable, place, data)
            self._stable_size = max(self._stable_size, place + len(data))

    def cut_power(self, random: Random) -> None:
        """Lose what was not synced, but for a first part."""
        kept = random.randint(0, len(self._pending)) if self._pending else 0
        for place, data in self._pending[:kept]:
            self._apply(place, data)
        torn = self._pending[kept : kept + 1]
        if torn and torn[0][1] and random.random() < 0.7:
            self._tear(random, torn[0][0], torn[0][1])
        self._pending.clear()
        self.data = bytearray(self._stable)
        self.size = self._stable_size
        self.lock = None

    def _tear(self, random: Random, offset: int, data: bytes) -> None:
        """Some sectors of the last write: mostly the first ones, sometimes any."""
        first, last = offset // SECTOR, (offset + len(data) - 1) // SECTOR
        sectors = range(first, last + 1)
        in_order = random.random() < 0.7
        end = random.choice(sectors)
        for sector in sectors:
            if (sector < end) if in_order else (random.random() < 0.5):
                lo = max(offset, sector * SECTOR)
                hi = min(offset + len(data), (sector + 1) * SECTOR)
                self._apply(lo, data[lo - offset : hi - offset])


def _put(data: bytearray, offset: int, new: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


class Directory:
    """Names."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.entries: dict[str, Node] = {}
        self.lock: object = None
        self._stable: dict[str, Node] = {}
        self._pending: list[dict[str, Node | None]] = []

    def change(self, changes: dict[str, Node | None]) -> None:
        """Some names at once: None takes one away."""
        _rename(self.entries, changes)
        self._pending.append(changes)

    def sync(self) -> None:
        for changes in self._pending:
            _rename(self._stable, changes)
        self._pending.clear()

    def cut_power(self, random: Random) -> None:
        kept = random.randint(0, len(self._pending)) if self._pending else 0
        for changes in self._pending[:kept]:
            _rename(self._stable, changes)
        self._pending.clear()
        self.entries = dict(self._stable)
        for node in self.entries.values():
            node.cut_power(random)


Node = File | Directory


def _rename(entries: dict[str, Node], changes: dict[str, Node | None]) -> None:
    for name, node in changes.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class OpenFile:
    """An open file description. ``position`` is for whoever reads in sequence."""

    __slots__ = ("node", "position")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.position = 0


class Disk:
    """One member's disk. ``slowness`` stretches its writes and syncs; ``spent`` sums up their
    seconds."""

    def __init__(self) -> None:
        self.slowness = 1.0
        self.spent = 0.0
        self.syncs = 0
        self.lies = False
        """Syncs that do nothing: for planted bugs."""
        self._numbers = 1
        self.failed = False
        """Whether a change was refused, since this was last set to False."""
        self._fuse: int | None = None
        self._fault: int | None = None
        self.root = Directory(0)

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    # Faults

    def stop_after(self, operations: int | None) -> None:
        """Raise PowerCut after so many changes; None: never."""
        self._fuse = operations

    def fail_after(self, operations: int | None) -> None:
        """Refuse one change with an error after so many; None: no more than so far."""
        self._fault = operations

    def cut_power(self, random: Random) -> None:
        self.root.cut_power(random)

    def release_locks(self) -> None:
        for node in self.walk(self.root):
            node.lock = None

    def walk(self, node: Node) -> Iterator[Node]:
        yield node
        if isinstance(node, Directory):
            for child in node.entries.values():
                yield from self.walk(child)

    def touched(self) -> None:
        """A change is about to be made."""
        if self._fuse is not None:
            if self._fuse <= 0:
                raise PowerCut
            self._fuse -= 1
        if self._fault is not None:
            if self._fault <= 0:
                self._fault, self.failed = None, True
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._fault -= 1

    def sync(self, node: Node, cost: float) -> None:
        self.touched()
        self.syncs += 1
        self.spent += cost
        if not self.lies:
            node.sync()

    # Names

    def find(self, path: str) -> Node | None:
        """What lies at an absolute path."""
        node: Node = self.root
        for name in PurePosixPath(path).parts[1:]:
            if not isinstance(node, Directory) or name not in node.entries:
                return None
            node = node.entries[name]
        return node

    def need(self, path: str) -> Node:
        node = self.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def parent(self, path: str) -> tuple[Directory, str]:
        """The directory of a path, and the name in it."""
        place = PurePosixPath(path)
        node = self.need(str(place.parent))
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node, place.name

    def create(self, path: str, node: Node) -> Node:
        self.touched()
        directory, name = self.parent(path)
        directory.change({name: node})
        return node

    def remove(self, path: str) -> None:
        self.need(path)
        self.touched()
        directory, name = self.parent(path)
        directory.change({name: None})

    def rename(self, source: str, target: str) -> None:
        """Within a directory it happens as one; between two, the new name comes first."""
        node = self.need(source)
        self.touched()
        old, old_name = self.parent(source)
        new, new_name = self.parent(target)
        if isinstance(new.entries.get(new_name), Directory):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
        if old is new:
            old.change({old_name: None, new_name: node})
        else:
            new.change({new_name: node})
            old.change({old_name: None})
