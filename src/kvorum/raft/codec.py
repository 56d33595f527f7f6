"""Between raft's values and the bytes of etcd's ``raftpb``, on the wire and on disk.

Written as etcd 3.5 writes (scalar fields also when 0, data and context only when there are any),
read as 3.5 to 3.7 write. A field of an enumeration that is out of its range is an error: nothing
useful could be done with it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeVar

from kvorum.raft.errors import DecodeError
from kvorum.raft.types import (
    ConfChangeTransition,
    ConfChangeType,
    Entry,
    EntryType,
    Message,
    MsgType,
    Snapshot,
)
from kvorum.raft.wire import fields, read_varint, varint

_E = TypeVar("_E", bound=IntEnum)

_ENTRY_TYPES: Final = tuple(EntryType)
_MSG_TYPES: Final = tuple(MsgType)
_CHANGE_TYPES: Final = tuple(ConfChangeType)
_TRANSITIONS: Final = tuple(ConfChangeTransition)


def _member(of: tuple[_E, ...], value: int) -> _E:
    if value >= len(of):
        raise DecodeError(f"{type(of[0]).__name__} has no value {value}")
    return of[value]


# --- entries: the hot part


# The lower 14 bits of an index as the first two bytes of a longer varint.
_LOW14: Final = tuple(bytes((low & 0x7F | 0x80, low >> 7 | 0x80)) for low in range(1 << 14))
_DATA_HEADS: Final = tuple(b"\x22" + varint(length) for length in range(1 << 12))


class _Heads(dict[tuple[int, int, int], tuple[bytes, bytes]]):
    """All that consecutive entries have in common, by (type, term, index >> 14).

    The value is what stands before and after the two bytes of the lower index bits. A handful of
    keys is in use at a time; the oldest are thrown away together.
    """

    LIMIT = 64

    def __missing__(self, key: tuple[int, int, int]) -> tuple[bytes, bytes]:
        kind, term, high = key
        if len(self) >= self.LIMIT:
            self.clear()
        head = b"\x08" + varint(kind) + b"\x10" + varint(term) + b"\x18"
        self[key] = value = (head, varint(high))
        return value


_heads: Final = _Heads()


def encode_entry(entry: Entry) -> bytes:
    """The entry's bytes; what rides along locally is not among them."""
    index = entry.index
    if index < 1 << 14:
        head = b"\x08%c\x10%b\x18%b" % (entry.type, varint(entry.term), varint(index))
    else:
        before, after = _heads[entry.type, entry.term, index >> 14]
        head = before + _LOW14[index & 0x3FFF] + after
    data = entry.data
    if not data:
        return head
    length = len(data)
    if length < 1 << 12:
        return head + _DATA_HEADS[length] + data
    return b"".join((head, b"\x22", varint(length), data))


def decode_entry(buf: bytes) -> Entry:
    """Raises DecodeError."""
    return _read_entry(buf, 0, len(buf))


def _read_entry(buf: bytes, pos: int, end: int) -> Entry:
    kind = term = index = 0
    data = b""
    while pos < end:
        tag = buf[pos]
        if tag == 0x22:
            length, start = read_varint(buf, pos + 1, end)
            pos = start + length
            if pos > end:
                raise DecodeError("truncated entry")
            data = buf[start:pos]
        elif tag in _ENTRY_SCALARS:
            # One byte is the common case for type and term.
            value = buf[pos + 1] if pos + 1 < end else 0x80
            pos += 2
            if value >= 0x80:
                value, pos = read_varint(buf, pos - 1, end)
            if tag == 0x18:
                index = value
            elif tag == 0x10:
                term = value
            else:
                kind = value
        else:
            _, _, _, pos = next(fields(buf, pos, end))
    if kind >= len(_ENTRY_TYPES):
        raise DecodeError(f"EntryType has no value {kind}")
    return Entry(term, index, _ENTRY_TYPES[kind], data)  # type: ignore[arg-type]  # hot


_ENTRY  # Varint fields of a message, by tag.
_SCALARS: Final = {
    0x10: "to",
    0x18: "from_",
    0x20: "term",
    0x28: "log_term",
    0x30: "index",
    0x40: "commit",
    0x58: "reject_hint",
    0x68: "vote",
}
_ENTRIES: Final = 0x3A

_MAX_DEPTH: Final = 4


def decode_message(buf: bytes) -> Message:
    """Raises DecodeError. The empty snapshot that etcd 3.5 puts into every message is left out."""
    return _read_message(buf, 0, len(buf), 0)


def _read_message(buf: bytes, pos: int, end: int, depth: int) -> Message:
    if depth > _MAX_DEPTH:
        raise DecodeError("responses nested too deep")
    m = Message(MsgType.HUP)
    entries: list[Entry] = []
    responses: list[Message] = []
    while pos < end:
        tag = buf[pos]
        name = _SCALARS.get(tag)
        if name is not None:
            value, pos = read_varint(buf, pos + 1, end)
            setattr(m, name, value)
        elif tag == _ENTRIES:
            length, start = read_varint(buf, pos + 1, end)
            pos = start + length
            if pos > end:
                raise DecodeError("truncated message")
            entries.append(_read_entry(buf, start, pos))
        else:
            number, value, start, pos = next(fields(buf, pos, end))
            if number == 14:
                responses.append(_read_message(buf, start, pos, depth + 1))
            else:
                _set_rare_field(m, number, value, buf[start:pos])
    m.entries = entries
    m.responses = responses
    return m


def _set_rare_field(m: Message, number: int, value: int, content: bytes) -> None:
    if number == 1:
        m.type = _member(_MSG_TYPES, value)
    elif number == 9:
        snapshot = decode_snapshot(content)
        m.snapshot = None if snapshot == _NO_SNAPSHOT else snapshot
    elif number == 10:
        m.reject = bool(value)
    elif number == 12:
        m.context = content


_NO_SNAPSHOT: Final = Snapshot()
