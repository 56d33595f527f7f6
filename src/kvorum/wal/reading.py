"""What a log says: everything after a snapshot, and the snapshots it vouches for."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from kvorum.raft import codec
from kvorum.raft.types import EMPTY_HARD_STATE, Entry, HardState
from kvorum.wal import names
from kvorum.wal.decoder import Decoder, Source, open_source
from kvorum.wal.errors import (
    CorruptLog,
    EntryGap,
    MetadataConflict,
    SnapshotMismatch,
    SnapshotNotFound,
    UnexpectedEOF,
)
from kvorum.wal.record import RecordType
from kvorum.wal.snapshot import SnapshotRecord

START: Final = SnapshotRecord()
"""The snapshot that every log begins with."""

_SCAN_ATTEMPTS: Final = 3


class ReadResult(NamedTuple):
    """The log after a snapshot.

    ``entries`` are contiguous from the snapshot's index + 1. Those above ``hard_state.commit`` may
    be replaced later and must not be applied yet.
    """

    metadata: bytes
    hard_state: HardState
    entries: list[Entry]


class Collector:
    """Builds a `ReadResult` record by record."""

    def __init__(self, decoder: Decoder, start: SnapshotRecord) -> None:
        self.hard_state = EMPTY_HARD_STATE
        self.last_index = 0
        self._decoder = decoder
        self._start = start
        self._metadata: bytes | None = None
        self._entries: list[Entry] = []
        self._start_seen = False

    def collect(self) -> None:
        """Read to the end, or raise what the decoder raises."""
        add_entry = self._add_entry
        entry_type = int(RecordType.ENTRY)
        for kind, data in self._decoder:
            try:
                if kind == entry_type:
                    add_entry(codec.decode_entry(data))
                else:
                    self._add_other(kind, data)
            except ValueError as error:
                why = f"the data of a record of type {kind} cannot be read: {error}"
                raise self._corrupt(why) from error

    def result(self) -> ReadResult:
        start = self._start
        if self._metadata is None:
            raise self._corrupt("the log has no metadata record")
        if not self._start_seen:
            why = f"no record of the snapshot at term {start.term}, index {start.index}"
            raise SnapshotNotFound(self._decoder.path.parent, why)
        return ReadResult(self._metadata, self.hard_state, self._entries)

    def _add_entry(self, entry: Entry) -> None:
        """A later entry of the same index replaces it and all after it (Raft, figure 7)."""
        entries = self._entries
        position = entry.index - self._start.index - 1
        if position == len(entries):
            entries.append(entry)
        elif position > len(entries):
            before = self._start.index + len(entries)
            why = f"entry {entry.index} (term {entry.term}) follows entry {before}"
            raise EntryGap(self._decoder.path, why, offset=self._decoder.offset)
        elif position >= 0:
            del entries[position:]
            entries.append(entry)
        self.last_index = entry.index

    def _add_other(self, kind: int, data: bytes) -> None:
        if kind == RecordType.STATE:
            self.hard_state = codec.decode_hard_state(data)
        elif kind == RecordType.SNAPSHOT:
            self._add_snapshot(SnapshotRecord.decode(data))
        elif kind == RecordType.METADATA:
            self._add_metadata(data)
        else:
            raise self._corrupt(f"a record of the unknown type {kind}")

    def _add_snapshot(self, snapshot: SnapshotRecord) -> None:
        start = self._start
        self.last_index = max(self.last_index, snapshot.index)
        if snapshot.index != start.index:
            return
        if snapshot.term != start.term:
            why = f"the snapshot at {start.index} has term {snapshot.term}, not {start.term}"
            raise SnapshotMismatch(self._decoder.path, why, offset=self._decoder.offset)
        self._start_seen = True

    def _add_metadata(self, data: bytes) -> None:
        if self._metadata not in (None, data):
            why = "the metadata differs from that of the segment before"
            raise MetadataConflict(self._decoder.path, why, offset=self._decoder.offset)
        self._metadata = data

    def _corrupt(self, why: str) -> CorruptLog:
        return CorruptLog(self._decoder.path, why, offset=self._decoder.offset)


def read_log(directory: Path, snapshot: SnapshotRecord = START) -> ReadResult:
    """Read without locks and without changing anything, for tools. A torn tail ends the log.

    Raises `WALError` as `WAL.open` and `WAL.read_all` do.
    """
    selected = names.select(directory, snapshot.index)
    with ExitStack() as stack:
        collector = Collector(Decoder(_open(directory, selected, stack)), snapshot)
        with suppress(UnexpectedEOF):
            collector.collect()
        return collector.result()


def valid_snapshots(directory: Path) -> list[SnapshotRecord]:
    """The snapshots recorded in the log up to its last commit index, oldest first.

    A newer one was recorded, but what it rests on was never known to be committed. Reads every
    segment there is; may be called while another process appends to the log or purges it.
    """
    for attempt in range(1, _SCAN_ATTEMPTS + 1):
        try:
            with ExitStack() as stack:
                sources = _open(directory, names.list_segments(directory), stack)
                snapshots, commit = _scan(sources, may_end_torn=True)
        except FileNotFoundError:  # purged between listing and opening
            if attempt == _SCAN_ATTEMPTS:
                raise
        else:
            return [snapshot for snapshot in snapshots if snapshot.index <= (commit or 0)]
    raise AssertionError("unreachable")


def latest_snapshot(directory: Path) -> SnapshotRecord:
    """The last of `valid_snapshots`, or `START`. Reads back from the newest segment, and no
    further than it must: what lies before is of no use to a member that starts here."""
    commit: int | None = None
    segments = names.list_segments(directory)
    for name in reversed(segments):
        with ExitStack() as stack:
            sources = _open(directory, [name], stack)
            snapshots, own_commit = _scan(sources, may_end_torn=name == segments[-1])
        commit = own_commit if commit is None else commit
        if commit is not None:
            for snapshot in reversed(snapshots):
                if snapshot.index <= commit:
                    return snapshot
    return START


def _scan(sources: list[Source], *, may_end_torn: bool) -> tuple[list[SnapshotRecord], int | None]:
    """(snapshot records, last commit index if any state tells it)."""
    snapshots: list[SnapshotRecord] = []
    commit: int | None = None
    decoder = Decoder(sources)
    try:
        for kind, data in decoder:
            if kind == RecordType.SNAPSHOT:
                snapshots.append(SnapshotRecord.decode(data))
            elif kind == RecordType.STATE:
                commit = codec.decode_hard_state(data).commit
    except UnexpectedEOF:
        if not may_end_torn:
            raise
    except ValueError as error:
        raise CorruptLog(decoder.path, str(error), offset=decoder.offset) from error
    return snapshots, commit


def _open(directory: Path, selected: list[names.SegmentName], stack: ExitStack) -> list[Source]:
    sources = [open_source(directory / str(name)) for name in selected]
    for source in sources:
        stack.enter_context(source.file)
    return sources
