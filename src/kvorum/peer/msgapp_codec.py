"""The ``msgapp`` stream, version 2: appends, without what can be told from those before.

Both ends remember the term and index at which the last append ended, 0 in the beginning. A frame is

- ``00``: a link heartbeat, nothing else;
- ``01``, entry count k, k times (size, Entry), commit, all numbers in 8 bytes BE: an append that
  begins right there, in the same term. k may be 0, which brings the commit index alone;
- ``02``, 8 bytes BE size, raftpb.Message: any other append.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvorum.peer.framing import MAX_MESSAGE, UINT64, FrameDecoder, checked_size
from kvorum.raft import codec
from kvorum.raft.errors import DecodeError
from kvorum.raft.types import NO_INDEX, NO_TERM, Entry, Message, MsgType
from kvorum.types import Index, MemberID, Term

LINK_HEARTBEAT: Final = b"\x00"
_ENTRIES: Final = b"\x01"
_FULL: Final = b"\x02"

_HEAD: Final = 9
_NUMBER: Final = 8
_ZERO: Final = bytes(8)

MAX_ENTRIES: Final = 1 << 20
"""Entries of one append. raft makes appends of 1 MiB, or of one entry; none is shorter than 4
bytes."""


class Runs:
    """Encoded runs of entries, kept for the moment: a leader sends the same ones to all.

    A run is told by its first and last entry and its length. In one log, at one time, there is but
    one, and entries are never changed once they are sent. The entries are held, so that no other
    object can take their identity.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], tuple[bytes, Sequence[Entry]]] = {}

    def encode(self, entries: Sequence[Entry]) -> bytes:
        key = (id(entries[0]), id(entries[-1]), len(entries))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = (_encode_run(entries), entries)
        return known[0]

    def forget(self) -> None:
        self._known.clear()


def _encode_run(entries: Sequence[Entry]) -> bytes:
    parts = []
    pack = UINT64.pack
    encode = codec.encode_entry
    for entry in entries:
        data = encode(entry)
        parts.append(pack(len(data)))
        parts.append(data)
    return b"".join(parts)


class MsgAppEncoder:
    """One end of one connection. ``runs`` is shared by the streams to all members."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._term = NO_TERM
        self._index = NO_INDEX

    def encode(self, m: Message, out: list[bytes]) -> int:
        """Add the frame of a MsgApp to ``out``; its size in bytes. Messages must come in the order
        in which raft made them."""
        assert m.type is MsgType.APP, f"{m.type} on the msgapp stream"
        if m.index == self._index and m.log_term == self._term == m.term:
            return self._encode_next(m, out)
        return self._encode_full(m, out)

    def _encode_next(self, m: Message, out: list[bytes]) -> int:
        count = len(m.entries)
        if not count:
            out += (_ENTRIES, _ZERO, UINT64.pack(m.commit))
            return _HEAD + _NUMBER
        run = self._runs.encode(m.entries)
        out += (_ENTRIES, UINT64.pack(count), run, UINT64.pack(m.commit))
        self._index = Index(self._index + count)
        return _HEAD + _NUMBER + len(run)

    def _encode_full(self, m: Message, out: list[bytes]) -> int:
        data = codec.encode_message(m)
        out += (_FULL, UINT64.pack(len(data)), data)
        self._term = m.term
        self._index = m.entries[-1].index if m.entries else m.index
        return _HEAD + len(data)


class MsgAppDecoder(FrameDecoder):
    """Reads what ``sender`` sends to ``local``; ``limit`` is the largest message in bytes."""

    def __init__(self, local: MemberID, sender: MemberID, limit: int = MAX_MESSAGE) -> None:
        super().__init__()
        self._local = local
        self._sender = sender
        self._limit = limit
        self._term = NO_TERM
        self._index = NO_INDEX
        self._entries: list[Entry] | None = None
        """Of the append that is being read."""
        self._missing = 0
        self._room = 0

    def _read(self, buf: bytes, found: list[Message]) -> int:
        pos, size = 0, len(buf)
        while True:
            if self._entries is not None:
                pos, whole = self._read_entries(buf, pos, found)
                if not whole:
                    return pos
            elif pos == size:
                self._need = 1
                return pos
            elif buf[pos] == 0:
                pos += 1
            elif size - pos < _HEAD:
                self._check_kind(buf[pos])
                self._need = _HEAD
                return pos
            else:
                start = pos
                pos = self._read_frame(buf, pos, found)
                if pos == start:
                    return pos

    def _read_frame(self, buf: bytes, pos: int, found: list[Message]) -> int:
        """The position after the frame, or after the beginning of one with entries; the same as
        before if there is not enough of it."""
        self._check_kind(buf[pos])
        number: int = UINT64.unpack_from(buf, pos + 1)[0]
        if buf[pos] == 1:
            if number > MAX_ENTRIES:
                raise DecodeError(f"an append of {number} entries, more than {MAX_ENTRIES}")
            self._entries = []
            self._missing = number
            self._room = self._limit
            return pos + _HEAD
        end = pos + _HEAD + checked_size(number, self._limit)
        if end > len(buf):
            self._need = end - pos
            return pos
        found.append(self._take_full(codec.decode_message(buf, pos + _HEAD, end)))
        return end

    @staticmethod
    def _check_kind(kind: int) -> None:
        if kind not in (1, 2):
            raise DecodeError(f"a frame of kind {kind} on the msgapp stream")

    def _take_full(self, m: Message) -> Message:
        if m.type is not MsgType.APP:
            raise DecodeError(f"{m.type} on the msgapp stream")
        self._term = m.term
        self._index = m.entries[-1].index if m.entries else m.index
        return m

    def _read_entries(self, buf: bytes, pos: int, found: list[Message]) -> tuple[int, bool]:
        """Go on with an append; whether it is whole."""
        entries = self._entries
        assert entries is not None
        size = len(buf)
        unpack = UINT64.unpack_from
        decode = codec.decode_next_entry
        term = self._term
        index = self._index + len(entries)
        while self._missing:
            if size - pos < _NUMBER:
                self._need = _NUMBER
                return pos, False
            length = checked_size(unpack(buf, pos)[0], self._room)
            start = pos + _NUMBER
            end = start + length
            if end > size:
                self._need = end - pos
                return pos, False
            index += 1
            entries.append(decode(buf, start, end, term, index))
            self._room -= length
            self._missing -= 1
            pos = end
        if size - pos < _NUMBER:
            self._need = _NUMBER
            return pos, False
        found.append(self._take_next(entries, unpack(buf, pos)[0]))
        return pos + _NUMBER, True

    def _take_next(self, entries: list[Entry], commit: int) -> Message:
        self._entries = None
        term, index = self._term, self._index
        self._index = Index(index + len(entries))
        return Message(
            MsgType.APP,
            self._local,
            self._sender,
            Term(term),
            log_term=Term(term),
            index=index,
            entries=entries,
            commit=Index(commit),
        )
