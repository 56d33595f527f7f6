"""Turns a killed server's folder into what a power cut would have left of it.

A SIGKILL keeps all that was written, since the kernel still has it. After a power cut only what
was fsynced is sure to be there; of the rest any part may be, or not. ``power_shim.c`` keeps the
journal that this needs.
"""

from __future__ import annotations

import os
import random
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_RECORD = struct.Struct("=6Q")
_WRITE, _SYNC = 1, 2


@dataclass(frozen=True, slots=True)
class Written:
    """One write: where, how long, and what was there before (shorter at the file's end)."""

    sequence: int
    offset: int
    length: int
    old: bytes


def unsynced(journal: Path) -> dict[int, list[Written]]:
    """By inode, the writes that no fsync has covered, in order."""
    content = journal.read_bytes()
    writes: dict[int, list[Written]] = defaultdict(list)
    at = 0
    while at + _RECORD.size <= len(content):
        sequence, inode, kind, offset, old_length, length = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        if kind == _SYNC:
            writes[inode] = [write for write in writes[inode] if write.sequence > sequence]
            continue
        assert kind == _WRITE, f"journal broken at {at}"
        old = content[at : at + old_length]
        if len(old) < old_length:
            break  # killed while it was recorded: the write itself was not begun
        writes[inode].append(Written(sequence, offset, length, old))
        at += old_length
    return writes


def cut_power(journal: Path, folder: Path, rng: random.Random) -> int:
    """Undo unsynced writes below ``folder``: all of them, or a random part. How many."""
    share = rng.choice([1.0, 1.0, 0.5, 0.2])
    lost = unsynced(journal)
    undone = 0
    for path in sorted(folder.rglob("*")):
        for write in reversed(lost.get(path.stat().st_ino, [])):
            if rng.random() < share:
                _undo(path, write)
                undone += 1
    journal.unlink()
    return undone


def _undo(path: Path, write: Written) -> None:
    """Put the old bytes back; what lay beyond the old end becomes zeros."""
    size = path.stat().st_size
    data = write.old.ljust(min(write.length, max(0, size - write.offset)), b"\0")
    with path.open("r+b") as file:
        file.seek(write.offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
