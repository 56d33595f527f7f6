"""The write-ahead log in etcd's format: segments, records, checksum chain, repair.

Read in this order: ``record`` (the bytes), ``names``, ``encoder`` and ``decoder`` (both without
side effects), ``reading`` (what a log says), ``log`` (the files), ``repair``.
"""

from kvorum.wal.encoder import SEGMENT_SIZE, Encoder, WriteBatch
from kvorum.wal.errors import (
    BrokenSequence,
    CorruptLog,
    CRCMismatch,
    EntryGap,
    LogExists,
    LogNotFound,
    MetadataConflict,
    SegmentLocked,
    SnapshotMismatch,
    SnapshotNotFound,
    UnexpectedEOF,
    WALError,
    WriteFailed,
)
from kvorum.wal.log import WAL, WriteTimes, open_log
from kvorum.wal.names import exists
from kvorum.wal.reading import START, ReadResult, latest_snapshot, read_log, valid_snapshots
from kvorum.wal.repair import repair
from kvorum.wal.snapshot import SnapshotRecord

__all__ = [
    "SEGMENT_SIZE",
    "START",
    "WAL",
    "BrokenSequence",
    "CRCMismatch",
    "CorruptLog",
    "Encoder",
    "EntryGap",
    "LogExists",
    "LogNotFound",
    "MetadataConflict",
    "ReadResult",
    "SegmentLocked",
    "SnapshotMismatch",
    "SnapshotNotFound",
    "SnapshotRecord",
    "UnexpectedEOF",
    "WALError",
    "WriteBatch",
    "WriteFailed",
    "WriteTimes",
    "exists",
    "latest_snapshot",
    "open_log",
    "read_log",
    "repair",
    "valid_snapshots",
]
