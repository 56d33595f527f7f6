"""What can be wrong with a log, each case with the file, the offset and the reason."""

from __future__ import annotations

from pathlib import Path


class WALError(Exception):
    """The log cannot be used. ``path`` is the file or directory, ``offset`` where in the file."""

    def __init__(self, path: Path, why: str, *, offset: int | None = None) -> None:
        self.path = path
        self.why = why
        self.offset = offset
        place = f"{path}" if offset is None else f"{path} at offset {offset}"
        super().__init__(f"wal: {place}: {why}")


class WriteFailed(WALError):
    """The disk refused a write, a sync or a new segment. The log takes nothing more after it."""


class SegmentLocked(WALError):
    """Another process, or another part of this one, holds the segment."""


class LogNotFound(WALError):
    """No segment is there that reaches back to the index asked for."""


class LogExists(WALError):
    """A log was to be created where there is one."""


class BrokenSequence(WALError):
    """A segment is missing between two others."""


class CorruptLog(WALError):
    """Bytes that no interrupted write explains. Never repaired."""


class CRCMismatch(CorruptLog):
    """A record, or the start of a segment, does not continue the checksum chain."""


class UnexpectedEOF(WALError):
    """The file ends inside a record, as a write that was interrupted leaves it. Repairable."""


class MetadataConflict(CorruptLog):
    """Two segments name different members or clusters."""


class EntryGap(CorruptLog):
    """An entry's index leaves a hole behind the entry before it."""


class SnapshotMismatch(WALError):
    """The log has the snapshot's index, but with another term."""


class SnapshotNotFound(WALError):
    """The log has no record of the snapshot it was to be opened at."""
