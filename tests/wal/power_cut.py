"""A disk that loses power before the n-th thing that is asked of it."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SECTOR = 512


class PowerCut(BaseException):
    """Not an `Exception`, so that nothing on the way cleans up."""


class Unsynced(NamedTuple):
    path: Path
    offset: int
    before: bytes
    after: bytes


class Disk:
    """Watches the calls of this thread that change a disk and remembers what may be lost.

    What was written since a file's last sync may be there in part, sector by sector; a rename may
    be undone until its directory is synced.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        self.left = steps
        self._thread = threading.get_ident()
        self._unsynced: list[Unsynced] = []
        self._renames: list[tuple[Path, Path]] = []
        self._real: dict[str, Callable[..., Any]] = {}
        self._patch = monkeypatch
        for name in ("pwrite", "ftruncate", "fdatasync", "fsync", "rename", "posix_fallocate"):
            self._watch(name)

    def _watch(self, name: str) -> None:
        real = self._real[name] = getattr(os, name)
        note = getattr(self, f"_note_{name}", None)

        def step(*args: Any) -> Any:
            if threading.get_ident() != self._thread:
                return real(*args)
            if self.left == 0:
                raise PowerCut
            self.left -= 1
            if note is not None:
                note(*args)
            return real(*args)

        self._patch.setattr(os, name, step)

    def off(self) -> None:
        for name, real in self._real.items():
            self._patch.setattr(os, name, real)

    def _note_pwrite(self, fd: int, data: bytes, offset: int) -> None:
        before = os.pread(fd, len(data), offset)
        before += bytes(len(data) - len(before))
        self._unsynced.append(Unsynced(_path(fd), offset, before, data))

    def _note_fdatasync(self, fd: int) -> None:
        path = _path(fd)
        self._unsynced = [each for each in self._unsynced if each.path != path]

    def _note_fsync(self, fd: int) -> None:
        self._note_fdatasync(fd)
        path = _path(fd)
        self._renames = [each for each in self._renames if each[1].parent != path]

    def _note_rename(self, source: Path, target: Path) -> None:
        self._renames.append((Path(source), Path(target)))
        for i, each in enumerate(self._unsynced):
            if each.path == source:
                self._unsynced[i] = each._replace(path=Path(target))

    def after_the_cut(self, root: Path, copy: Path, seed: int | None) -> None:
        """What is on disk when the power is back: all of it for seed None, else a part."""
        shutil.copytree(root, copy)
        if seed is None:
            return
        draw = random.Random(seed)
        for each in self._unsynced:
            _lose_sectors(copy / each.path.relative_to(root), each, draw)
        for source, target in reversed(self._renames):
            if draw.random() < 0.5:
                (copy / target.relative_to(root)).rename(copy / source.relative_to(root))


def _lose_sectors(path: Path, write: Unsynced, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    share = draw.random()
    at = 0
    while at < len(write.after):
        end = min(at + SECTOR - (write.offset + at) % SECTOR, len(write.after))
        if draw.random() < share:
            content[write.offset + at : write.offset + end] = write.before[at:end]
        at = end
    path.write_bytes(content)


def _path(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))
