"""Turns entries, states and snapshots into the log's bytes. Pure: no file, no clock.

The encoder knows where the next byte will go and what the checksum chain will be there, so that
several batches may be encoded before the first is written; they must be written in that order. It
also decides when a segment is full: the cut is part of the batch that filled it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google_crc32c import extend

from kvorum.raft import codec
from kvorum.raft.types import EMPTY_HARD_STATE, Entry, HardState
from kvorum.wal.names import SegmentName
from kvorum.wal.record import RecordType, encode_frame
from kvorum.wal.shapes import FIVE_BYTES, LAST, PAIRS, WriteShapes
from kvorum.wal.snapshot import SnapshotRecord

SEGMENT_SIZE: Final = 64_000_000
"""Bytes after which the next segment is begun; a segment ends with the batch that reached it."""

_shapes: Final = WriteShapes()


class Cut:
    """The end of a segment: the name of the next one and the bytes it begins with."""

    __slots__ = ("head", "name", "size")

    def __init__(self, name: SegmentName, head: bytes, size: int) -> None:
        self.name = name
        self.head = head
        self.size = size
        """Bytes in the segment that ends here."""


class WriteBatch:
    """What one call of `Encoder.encode` adds to the log, to be written in the order of encoding.

    ``chunks``, ``size`` bytes together, belong at ``offset`` of segment ``sequence``; ``cut``, if
    any, comes after them. ``sync`` says that nothing may be promised before they are on disk.
    ``last_index`` is the newest entry in the log with this batch.
    """

    __slots__ = ("chunks", "cut", "last_index", "offset", "sequence", "size", "sync")

    def __init__(self, sequence: int, offset: int) -> None:
        self.sequence = sequence
        self.offset = offset
        self.chunks: list[bytes] = []
        self.size = 0
        self.sync = False
        self.last_index = 0
        self.cut: Cut | None = None


class Encoder:
    """Appends at ``offset`` of segment ``sequence``, where the checksum chain stands at ``crc``.

    ``state`` is the last hard state in the log, ``last_index`` its last entry. Both go into the
    head, or the name, of the next segment.
    """

    __slots__ = ("_metadata", "crc", "last_index", "offset", "segment_size", "sequence", "state")

    def __init__(
        self,
        metadata: bytes,
        *,
        sequence: int = 0,
        offset: int = 0,
        crc: int = 0,
        last_index: int = 0,
        state: HardState = EMPTY_HARD_STATE,
        segment_size: int = SEGMENT_SIZE,
    ) -> None:
        self._metadata = metadata
        self.sequence = sequence
        self.offset = offset
        self.crc = crc
        self.last_index = last_index
        self.state = state
        self.segment_size = segment_size

    def encode(self, state: HardState | None, entries: Sequence[Entry]) -> WriteBatch:
        """Entries, then the state unless it is empty; a cut if the segment is then full.

        Must be synced if there are entries, or if the vote or the term changed: what a member has
        promised must outlive it. The commit index alone is learned again from the leader.
        """
        batch = WriteBatch(self.sequence, self.offset)
        if entries:
            batch.sync = True
            self._add_entries(entries, batch.chunks)
        if state is not None and state != EMPTY_HARD_STATE:
            last = self.state
            if state.vote != last.vote or state.term != last.term:
                batch.sync = True
            self.state = state
            self._add(RecordType.STATE, codec.encode_hard_state(state), batch.chunks)
        batch.size = self.offset - batch.offset
        batch.last_index = self.last_index
        if self.offset >= self.segment_size:
            batch.cut = self._cut()
            batch.sync = True
        return batch

    def encode_snapshot(self, snapshot: SnapshotRecord) -> WriteBatch:
        """The record that a snapshot was saved. Always synced, and never cuts, as with etcd."""
        batch = WriteBatch(self.sequence, self.offset)
        self._add(RecordType.SNAPSHOT, snapshot.encode(), batch.chunks)
        # A snapshot from the leader may lie ahead of every entry; the next entry follows it.
        self.last_index = max(self.last_index, snapshot.index)
        batch.size = self.offset - batch.offset
        batch.last_index = self.last_index
        batch.sync = True
        return batch

    def begin_segment(self) -> bytes:
        """What every segment starts with: the chain's value, the metadata, and the last state."""
        assert self.offset == 0
        head = encode_frame(RecordType.CRC, self.crc, None)
        self.offset = len(head)
        chunks = [head]
        self._add(RecordType.METADATA, self._metadata, chunks)
        if self.state != EMPTY_HARD_STATE:
            self._add(RecordType.STATE, codec.encode_hard_state(self.state), chunks)
        return b"".join(chunks)

    def _cut(self) -> Cut:
        size = self.offset
        self.sequence += 1
        self.offset = 0
        name = SegmentName(self.sequence, self.last_index + 1)
        return Cut(name, self.begin_segment(), size)

    def _add(self, kind: RecordType, data: bytes, chunks: list[bytes]) -> None:
        self.crc = extend(self.crc, data)
        frame = encode_frame(kind, self.crc, data)
        self.offset += len(frame)
        chunks.append(frame)

    def _add_entries(self, entries: Sequence[Entry], chunks: list[bytes]) -> None:
        """The hot path, about a microsecond an entry: no frame is assembled, only its parts."""
        add = chunks.extend
        encode = codec.encode_entry
        shapes = _shapes
        crc = self.crc
        offset = self.offset
        for entry in entries:
            data = encode(entry)
            crc = extend(crc, data)
            if crc >= FIVE_BYTES:
                head, middle, padding, size = shapes[len(data)]
                high = LAST[crc >> 28]
                add((head, PAIRS[crc & 0x3FFF], PAIRS[crc >> 14 & 0x3FFF], high, middle, data))
                if padding:
                    add((padding,))
                offset += size
            else:
                frame = encode_frame(RecordType.ENTRY, crc, data)
                add((frame,))
                offset += len(frame)
        self.crc = crc
        self.offset = offset
        self.last_index = entries[-1].index
