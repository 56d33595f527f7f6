"""The write-ahead log: what a member has promised, on disk before it promises it.

Encoding and writing are apart. The event loop encodes, in the order things happen; the batches are
written in the order they were encoded, one after the other, by whatever thread::

    batch = log.encode(hard_state, entries)     # on the loop, a microsecond an entry
    written, synced = log.write(batch)          # in the log's thread

or, where somebody else can sync a file::

    fd = log.begin(batch)
    ...                                         # fdatasync(fd) took that many seconds, or failed
    written, synced = log.finish(seconds, None)

Nothing may be answered, nor any message sent, that depends on a batch before ``write``, or
``finish``, returned.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple, Self

from kvorum import failpoint
from kvorum.log import get_logger
from kvorum.raft.types import Entry, HardState
from kvorum.wal import names
from kvorum.wal.creation import create_directory
from kvorum.wal.decoder import Decoder, open_source
from kvorum.wal.encoder import SEGMENT_SIZE, Cut, Encoder, WriteBatch
from kvorum.wal.errors import (
    SegmentLocked,
    UnexpectedEOF,
    WALError,
    WriteFailed,
)
from kvorum.wal.files import (
    fsync_directory,
    open_locked,
    purge,
    rewrite,
    sync_data,
    zero_to_end,
)
from kvorum.wal.names import SegmentName
from kvorum.wal.preallocator import Preallocator
from kvorum.wal.reading import START, Collector, ReadResult
from kvorum.wal.repair import repair
from kvorum.wal.snapshot import SnapshotRecord

DEFER_LIMIT: Final = 128 * 1024
"""Bytes that need no sync are kept back for the next write that does, up to this many (as etcd)."""

SLOW_SYNC: Final = 1.0
"""Seconds after which a sync is worth a warning."""

lg = get_logger()


class WriteTimes(NamedTuple):
    """Seconds in write calls and in sync calls."""

    write: float
    sync: float


@dataclass(slots=True)
class Segment:
    name: SegmentName
    fd: int
    """Holds the lock on the file, too."""


class WAL:
    """A log open for appending, or, between `open` and `read_all`, for reading.

    ``encode*`` belong to one thread, all that writes to one other at a time; `release_to` and
    `purge` may be called from any. ``unsafe_no_fsync`` gives up all promises, for tests.
    """

    def __init__(
        self,
        directory: Path,
        segments: list[Segment],
        *,
        start: SnapshotRecord = START,
        segment_size: int = SEGMENT_SIZE,
        unsafe_no_fsync: bool = False,
    ) -> None:
        """For `create` and `open`; the segments, locked, are the log's from here on."""
        self.directory = directory
        self.encoder: Encoder | None = None
        self.failed: WALError | None = None
        self._start = start
        self._segments = segments
        self._segments_lock = threading.Lock()
        self._segment_size = segment_size
        self._no_fsync = unsafe_no_fsync
        self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._next: Preallocator | None = None
        self._closed = False
        # What the writing thread knows: where the tail file ends, and what is not yet in it.
        self._offset = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._write_seconds = 0.0
        self._sync_seconds = 0.0

    @classmethod
    def create(
        cls,
        directory: Path,
        metadata: bytes,
        *,
        segment_size: int = SEGMENT_SIZE,
        unsafe_no_fsync: bool = False,
    ) -> Self:
        """Begin a log, ready to append. It appears as a whole, by a rename, or not at all.

        ``metadata`` opens every segment. Raises `LogExists`, or `WriteFailed` if the disk refuses.
        """
        encoder = Encoder(metadata, segment_size=segment_size)
        head = encoder.begin_segment() + b"".join(encoder.encode_snapshot(START).chunks)
        try:
            fd = create_directory(directory, head, segment_size)
            log = cls(
                directory,
                [Segment(SegmentName(0, 0), fd)],
                segment_size=segment_size,
                unsafe_no_fsync=unsafe_no_fsync,
            )
            try:
                fsync_directory(directory.parent)
            except OSError:
                log._abandon()
                raise
        except OSError as error:
            raise WriteFailed(directory, f"the log cannot be created: {error}") from error
        log._begin_appending(encoder, len(head))
        return log

    @classmethod
    def open(
        cls,
        directory: Path,
        snapshot: SnapshotRecord = START,
        *,
        segment_size: int = SEGMENT_SIZE,
        unsafe_no_fsync: bool = False,
    ) -> Self:
        """Open and lock what follows ``snapshot``; `read_all` must come next.

        Raises `LogNotFound`, `BrokenSequence` or `SegmentLocked`.
        """
        return cls(
            directory,
            _lock_segments(directory, names.select(directory, snapshot.index)),
            start=snapshot,
            segment_size=segment_size,
            unsafe_no_fsync=unsafe_no_fsync,
        )

    def read_all(self) -> ReadResult:
        """Read to the end and make the log ready to append.

        Raises `UnexpectedEOF` for a torn end, which `repair` takes off, and other `WALError` for
        what must not be touched. Whatever follows the last record is zeroed.

        All that was read is on disk then. The process before may have been killed, or given up,
        between writing and syncing; from now on this one promises nothing less than what it read,
        and need not write for that.
        """
        assert self.encoder is None, "a log is read once"
        sources = [open_source(self._path(segment), segment.fd) for segment in self._segments]
        try:
            decoder = Decoder(sources)
            collector = Collector(decoder, self._start)
            collector.collect()
            result = collector.result()
        finally:
            for source in sources:
                source.file.close()
        # An interrupted write may have left whole records behind a length word of 0. Later
        # records would grow up to them and make them look like a continuation.
        tail = self._segments[-1]
        try:
            zero_to_end(tail.fd, decoder.offset)
            if not self._no_fsync:
                rewrite(tail.fd, decoder.offset)
                sync_data(tail.fd)
                fsync_directory(self.directory)
                fsync_directory(self.directory.parent)
        except OSError as error:
            raise WriteFailed(self._path(tail), f"cannot be made ready: {error}") from error
        encoder = Encoder(
            result.metadata,
            sequence=tail.name.sequence,
            offset=decoder.offset,
            crc=decoder.crc,
            last_index=collector.last_index,
            state=result.hard_state,
            segment_size=self._segment_size,
        )
        self._begin_appending(encoder, decoder.offset)
        return result

    def encode(self, hard_state: HardState | None, entries: Sequence[Entry]) -> WriteBatch:
        """See `Encoder.encode`. What is encoded must be written, in the same order."""
        if self.failed is not None:
            raise self.failed
        assert self.encoder is not None, "read_all comes first"
        return self.encoder.encode(hard_state, entries)

    def encode_snapshot(self, snapshot: SnapshotRecord) -> WriteBatch:
        """To be written after the snapshot itself is safely on disk."""
        if self.failed is not None:
            raise self.failed
        assert self.encoder is not None, "read_all comes first"
        return self.encoder.encode_snapshot(snapshot)

    def write(self, batch: WriteBatch) -> WriteTimes:
        """Put a batch on disk, synced if it must be."""
        return self.write_all((batch,))

    def write_all(self, batches: Iterable[WriteBatch]) -> WriteTimes:
        """Several batches in the order of encoding, with one write and one sync if there is no cut.

        Raises `WriteFailed`; the log is of no use after that, since nobody can know how much of
        the failed write is on disk. A new process has to read it again.
        """
        if self.failed is not None:
            raise self.failed
        self._write_seconds = self._sync_seconds = 0.0
        try:
            self._write_batches(batches)
        except Exception as error:
            raise self._fail(error) from error
        return WriteTimes(self._write_seconds, self._sync_seconds)

    def begin(self, batch: WriteBatch) -> int:
        """The first half of `write`, for a batch that must be synced and does not cut: its bytes
        go into the file. Returns the descriptor to be synced; then `finish` must come next.

        Raises `WriteFailed`, as `write_all` does.
        """
        if self.failed is not None:
            raise self.failed
        self._write_seconds = self._sync_seconds = 0.0
        try:
            assert batch.sync, "nothing is to be synced"
            assert batch.cut is None, "a cut takes more than one sync"
            self._take(batch)
            if failpoint.active:
                failpoint.hit("walBeforeSync")
            self._flush()
        except Exception as error:
            raise self._fail(error) from error
        return self._segments[-1].fd

    def finish(self, seconds: float, error: OSError | None) -> WriteTimes:
        """The second half: the sync took so many seconds, or failed with ``error``.

        Raises `WriteFailed`, as `write_all` does.
        """
        if self.failed is not None:
            raise self.failed
        try:
            if error is not None:
                raise error
            self._count_sync(seconds)
            if failpoint.active:
                failpoint.hit("walAfterSync")
        except Exception as failure:
            raise self._fail(failure) from failure
        return WriteTimes(self._write_seconds, self._sync_seconds)

    def sync(self) -> WriteTimes:
        """Put on disk what was kept back."""
        if self.failed is not None:
            raise self.failed
        self._write_seconds = self._sync_seconds = 0.0
        try:
            self._flush_and_sync()
        except Exception as error:
            raise self._fail(error) from error
        return WriteTimes(self._write_seconds, self._sync_seconds)

    def release_to(self, index: int) -> None:
        """Give up the locks on segments that nobody needs who restarts at ``index``.

        The last segment that starts below ``index``, and all after it, stay locked.
        """
        with self._segments_lock:
            held = self._segments
            needed = len(held) - 1
            for position, segment in enumerate(held):
                if segment.name.first_index >= index:
                    needed = position - 1
                    break
            for segment in held[: max(0, needed)]:
                os.close(segment.fd)
            del held[: max(0, needed)]

    def purge(self, max_wals: int) -> list[Path]:
        """Remove the oldest segments beyond ``max_wals``, but none that is locked. May block."""
        return purge(self.directory, ".wal", max_wals)

    def close(self) -> None:
        """Write what was kept back, unless the log has failed, and let the files go.

        The writing thread must have come to its end.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self.failed is None and self.encoder is not None:
                self.sync()
        finally:
            self._release_files()

    def _begin_appending(self, encoder: Encoder, offset: int) -> None:
        self.encoder = encoder
        self._offset = offset
        self._next = Preallocator(self.directory, self._segment_size)
        if offset == 0:
            # A segment that was cut back to nothing: without its head nobody could start here.
            self._keep_back([head := encoder.begin_segment()], len(head))

    def _write_batches(self, batches: Iterable[WriteBatch]) -> None:
        must_sync = False
        for batch in batches:
            self._take(batch)
            must_sync = must_sync or batch.sync
            if batch.cut is not None:
                self._cut(batch.cut)
                must_sync = False
        if must_sync:
            if failpoint.active:
                failpoint.hit("walBeforeSync")
            self._flush_and_sync()
            if failpoint.active:
                failpoint.hit("walAfterSync")
        elif self._pending_size > DEFER_LIMIT:
            self._flush()

    def _take(self, batch: WriteBatch) -> None:
        place = (self._segments[-1].name.sequence, self._offset + self._pending_size)
        assert (batch.sequence, batch.offset) == place, "batches are written out of order"
        self._keep_back(batch.chunks, batch.size)

    def _keep_back(self, chunks: list[bytes], size: int) -> None:
        self._pending.extend(chunks)
        self._pending_size += size

    def _flush(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        assert len(data) == self._pending_size
        self._pwrite(self._segments[-1], data, self._offset)
        self._offset += len(data)
        self._pending.clear()
        self._pending_size = 0

    def _flush_and_sync(self) -> None:
        self._flush()
        self._fdatasync(self._segments[-1])

    def _cut(self, cut: Cut) -> None:
        """End the segment, and give the next one its head before it gets its name."""
        assert self._next is not None
        self._flush()
        tail = self._segments[-1]
        assert self._offset == cut.size
        os.ftruncate(tail.fd, cut.size)
        self._fdatasync(tail)
        made, fd = self._next.take()
        segment = Segment(cut.name, fd)
        with self._segments_lock:
            self._segments.append(segment)
        self._pwrite(segment, cut.head, 0)
        self._offset = len(cut.head)
        self._fdatasync(segment)
        path = self._path(segment)
        os.rename(made, path)
        os.fsync(self._directory_fd)
        lg.info("created a new WAL segment", path=str(path))

    def _pwrite(self, segment: Segment, data: bytes, offset: int) -> None:
        started = time.perf_counter()
        written = os.pwrite(segment.fd, data, offset)
        self._write_seconds += time.perf_counter() - started
        if written != len(data):
            why = f"only {written} of {len(data)} bytes were written"
            raise WriteFailed(self._path(segment), why, offset=offset)

    def _fdatasync(self, segment: Segment) -> None:
        if self._no_fsync:
            return
        started = time.perf_counter()
        sync_data(segment.fd)
        self._count_sync(time.perf_counter() - started)

    def _count_sync(self, took: float) -> None:
        self._sync_seconds += took
        if took > SLOW_SYNC:
            expected = timedelta(seconds=SLOW_SYNC)
            lg.warn("slow fdatasync", took=timedelta(seconds=took), expected_duration=expected)

    def _fail(self, error: Exception) -> WALError:
        if not isinstance(error, WALError):
            path = self._path(self._segments[-1])
            error = WriteFailed(path, f"{type(error).__name__}: {error}", offset=self._offset)
        self.failed = error
        return error

    def _release_files(self) -> None:
        if self._next is not None:
            self._next.close()
        with self._segments_lock:
            for segment in self._segments:
                os.close(segment.fd)
            self._segments.clear()
        os.close(self._directory_fd)

    def _abandon(self) -> None:
        """Set aside a log whose creation may be undone by a power cut."""
        self._closed = True
        self._release_files()
        stamp = datetime.now(UTC).strftime("%Y%m%d.%H%M%S.%f")
        os.rename(self.directory, f"{self.directory}.broken.{stamp}")

    def _path(self, segment: Segment) -> Path:
        return self.directory / str(segment.name)


def open_log(
    directory: Path,
    snapshot: SnapshotRecord = START,
    *,
    segment_size: int = SEGMENT_SIZE,
    unsafe_no_fsync: bool = False,
) -> tuple[WAL, ReadResult]:
    """Open, read and make ready to append; a torn end is repaired once."""
    for may_repair in (True, False):
        log = WAL.open(
            directory, snapshot, segment_size=segment_size, unsafe_no_fsync=unsafe_no_fsync
        )
        try:
            return log, log.read_all()
        except UnexpectedEOF as torn:
            log.close()
            if not may_repair:
                raise
            lg.warn("failed to read WAL, trying to repair", error=str(torn))
            repair(directory)
        except BaseException:
            log.close()
            raise
    raise AssertionError("unreachable")


def _lock_segments(directory: Path, selected: list[SegmentName]) -> list[Segment]:
    segments: list[Segment] = []
    for name in selected:
        path = directory / str(name)
        fd = open_locked(path, os.O_RDWR)
        if fd is None:
            for segment in segments:
                os.close(segment.fd)
            raise SegmentLocked(path, "held by another process")
        segments.append(Segment(name, fd))
    return segments
