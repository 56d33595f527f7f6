"""Segment names: ``<sequence>-<index of the first entry it may hold>.wal``, both 16 hex digits."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from kvorum.log import get_logger
from kvorum.wal.errors import BrokenSequence, LogNotFound

_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")

lg = get_logger()


class SegmentName(NamedTuple):
    """Sorts as the file names do: by sequence number."""

    sequence: int
    first_index: int

    def __str__(self) -> str:
        return f"{self.sequence:016x}-{self.first_index:016x}.wal"


def parse(name: str) -> SegmentName | None:
    match = _NAME.fullmatch(name)
    return SegmentName(int(match[1], 16), int(match[2], 16)) if match else None


def exists(directory: Path) -> bool:
    """Whether a log was ever completed here: `create` makes it appear at once, by a rename."""
    return directory.is_dir() and any(path.suffix == ".wal" for path in directory.iterdir())


def list_segments(directory: Path) -> list[SegmentName]:
    """Every segment, oldest first; other files are ignored, with a warning unless ``.tmp``.

    Raises `LogNotFound` when there is none.
    """
    found = []
    try:
        entries = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        raise LogNotFound(directory, "the directory does not exist") from None
    for entry in entries:
        name = parse(entry)
        if name is not None:
            found.append(name)
        elif not entry.endswith(".tmp"):
            lg.warn("ignored file in WAL directory", path=entry)
    if not found:
        raise LogNotFound(directory, "no segment in it")
    return sorted(found)


def select(directory: Path, index: int) -> list[SegmentName]:
    """The segments to read for what follows ``index``: from the last that starts at or before it.

    Raises `LogNotFound` if the oldest starts later, `BrokenSequence` if one in between is missing.
    """
    names = list_segments(directory)
    start = next((i for i in range(len(names) - 1, -1, -1) if names[i].first_index <= index), None)
    if start is None:
        oldest = names[0].first_index
        why = f"no segment reaches back to index {index}, the oldest starts at {oldest}"
        raise LogNotFound(directory, why)
    check_contiguous(directory, names[start:])
    return names[start:]


def check_contiguous(directory: Path, names: list[SegmentName]) -> None:
    for before, after in pairwise(names):
        if after.sequence != before.sequence + 1:
            raise BrokenSequence(directory, f"{before} is followed by {after}")
