"""Between raft's values and the bytes of etcd's ``raftpb``, on the wire and on disk.

Written as etcd 3.5 writes (scalar fields also when 0, data and context only when there are any),
read as 3.5 to 3.7 write. A field of an enumeration that is out of its range is an error: nothing
useful could be done with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, TypeVar

from kvorum.raft.errors import DecodeError
from kvorum.raft.types import (
    NO_INDEX,
    NO_TERM,
    NONE,
    AnyConfChange,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MsgType,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.raft.wire import bytes_field, fields, read_uints, read_varint, uint_field, varint
from kvorum.types import Index, MemberID, Term

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


_MOST_HEADS: Final = 64
_MOST_PARTS: Final = 256


class _Heads(dict[tuple[int, int, int], tuple[bytes, bytes]]):
    """All that consecutive entries have in common, by (type, term, index >> 14).

    The value is what stands before and after the two bytes of the lower index bits. A handful of
    keys is in use at a time; the oldest are thrown away together.
    """

    def __missing__(self, key: tuple[int, int, int]) -> tuple[bytes, bytes]:
        kind, term, high = key
        if len(self) >= _MOST_HEADS:
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


def decode_entry(buf: bytes, start: int = 0, end: int | None = None) -> Entry:
    """The entry in ``buf[start:end]``; raises DecodeError."""
    return _read_entry(buf, start, len(buf) if end is None else end)


def decode_next_entry(buf: bytes, start: int, end: int, term: int, index: int) -> Entry:
    """The entry in ``buf[start:end]``, which most likely is the plain one of ``term`` and
    ``index``: then its head need not be parsed, only compared. Raises DecodeError."""
    if index < 1 << 14:
        head = b"\x08\x00\x10%b\x18%b\x22" % (varint(term), varint(index))
    else:
        before, after = _heads[0, term, index >> 14]
        head = before + _LOW14[index & 0x3FFF] + after + b"\x22"
    if start < end and buf[start] == 0x10:  # etcd 3.7 leaves a type of 0 out
        head = head[2:]
    pos = start + len(head)
    if pos + 1 < end and buf.startswith(head, start):
        length = buf[pos]
        pos += 1
        if length >= 0x80:
            high = buf[pos]
            length = length & 0x7F | high << 7 if high < 0x80 else -1  # not in three bytes, here
            pos += 1
        if pos + length == end:
            return Entry(term, index, EntryType.NORMAL, buf[pos:end])  # type: ignore[arg-type]
    return _read_entry(buf, start, end)


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


_ENTRY_SCALARS: Final = frozenset({0x08, 0x10, 0x18})


# --- states and snapshots


def encode_hard_state(state: HardState) -> bytes:
    return b"\x08%b\x10%b\x18%b" % (
        varint(state.term),
        varint(state.vote),
        varint(state.commit),
    )


def decode_hard_state(buf: bytes) -> HardState:
    """Raises DecodeError."""
    found = {number: value for number, value, _, _ in fields(buf, 0, len(buf))}
    return HardState(Term(found.get(1, 0)), MemberID(found.get(2, 0)), Index(found.get(3, 0)))


def encode_conf_state(state: ConfState) -> bytes:
    out = [
        uint_field(number, member)
        for number, members in enumerate(_member_fields(state), 1)
        for member in members
    ]
    out.append(uint_field(5, state.auto_leave))
    return b"".join(out)


def _member_fields(state: ConfState) -> tuple[Sequence[MemberID], ...]:
    return state.voters, state.learners, state.voters_outgoing, state.learners_next


def decode_conf_state(buf: bytes) -> ConfState:
    """Raises DecodeError."""
    members: dict[int, list[MemberID]] = {1: [], 2: [], 3: [], 4: []}
    auto_leave = False
    for number, value, start, end in fields(buf, 0, len(buf)):
        if number == 5:
            auto_leave = bool(value)
        elif number in members:
            members[number] += map(MemberID, read_uints(buf, value, start, end))
    voters, learners, outgoing, learners_next = map(tuple, members.values())
    return ConfState(voters, learners, outgoing, learners_next, auto_leave)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    meta = encode_snapshot_metadata(snapshot.metadata)
    data = bytes_field(1, snapshot.data) if snapshot.data else b""
    return data + bytes_field(2, meta)


def decode_snapshot(buf: bytes) -> Snapshot:
    """Raises DecodeError."""
    data = b""
    meta = SnapshotMetadata()
    for number, _, start, end in fields(buf, 0, len(buf)):
        if number == 1:
            data = buf[start:end]
        elif number == 2:
            meta = decode_snapshot_metadata(buf[start:end])
    return Snapshot(data, meta)


def encode_snapshot_metadata(meta: SnapshotMetadata) -> bytes:
    return (
        bytes_field(1, encode_conf_state(meta.conf_state))
        + uint_field(2, meta.index)
        + uint_field(3, meta.term)
    )


def decode_snapshot_metadata(buf: bytes) -> SnapshotMetadata:
    """Raises DecodeError."""
    state = ConfState()
    index, term = NO_INDEX, NO_TERM
    for number, value, start, end in fields(buf, 0, len(buf)):
        if number == 1:
            state = decode_conf_state(buf[start:end])
        elif number == 2:
            index = Index(value)
        elif number == 3:
            term = Term(value)
    return SnapshotMetadata(state, index, term)


# --- configuration changes


def encode_conf_change(cc: AnyConfChange | None) -> tuple[EntryType, bytes]:
    """The type and data of the entry that proposes ``cc``.

    None leaves a joint configuration; it has no bytes, so that no size limit can refuse it.
    """
    if cc is None:
        return EntryType.CONF_CHANGE_V2, b""
    context = cc.context
    if isinstance(cc, ConfChange):
        data = uint_field(1, cc.id) + uint_field(2, cc.type) + uint_field(3, cc.node_id)
        return EntryType.CONF_CHANGE, data + bytes_field(4, context) if context else data
    data = uint_field(1, cc.transition) + b"".join(
        bytes_field(2, uint_field(1, one.type) + uint_field(2, one.node_id)) for one in cc.changes
    )
    return EntryType.CONF_CHANGE_V2, data + bytes_field(3, context) if context else data


def decode_entry_conf_change(entry: Entry) -> AnyConfChange:
    """What a configuration change entry asks for; raises DecodeError."""
    if entry.type is EntryType.CONF_CHANGE:
        return decode_conf_change(entry.data)
    if entry.type is EntryType.CONF_CHANGE_V2:
        return decode_conf_change_v2(entry.data)
    raise DecodeError(f"{entry.type} is no configuration change")


def decode_conf_change(buf: bytes) -> ConfChange:
    """Raises DecodeError."""
    kind, node_id, request_id, context = 0, NONE, 0, b""
    for number, value, start, end in fields(buf, 0, len(buf)):
        if number == 1:
            request_id = value
        elif number == 2:
            kind = value
        elif number == 3:
            node_id = MemberID(value)
        elif number == 4:
            context = buf[start:end]
    return ConfChange(_member(_CHANGE_TYPES, kind), node_id, context, request_id)


def decode_conf_change_v2(buf: bytes) -> ConfChangeV2:
    """Raises DecodeError."""
    transition, context = 0, b""
    changes = []
    for number, value, start, end in fields(buf, 0, len(buf)):
        if number == 1:
            transition = value
        elif number == 2:
            changes.append(_decode_single(buf[start:end]))
        elif number == 3:
            context = buf[start:end]
    return ConfChangeV2(_member(_TRANSITIONS, transition), tuple(changes), context)


def _decode_single(buf: bytes) -> ConfChangeSingle:
    found = {number: value for number, value, _, _ in fields(buf, 0, len(buf))}
    return ConfChangeSingle(_member(_CHANGE_TYPES, found.get(1, 0)), MemberID(found.get(2, 0)))


# --- messages


class _MessageHeads(dict[tuple[int, int, int, int, int], bytes]):
    """How messages begin, up to their index; two members repeat a dozen of these all day."""

    def __missing__(self, key: tuple[int, int, int, int, int]) -> bytes:
        if len(self) >= _MOST_PARTS:
            self.clear()
        self[key] = value = b"\x08%b\x10%b\x18%b\x20%b\x28%b\x30" % tuple(map(varint, key))
        return value


_message_heads: Final = _MessageHeads()


def encode_message(m: Message) -> bytes:
    """The message's bytes, for a peer."""
    out = [
        _message_heads[m.type, m.to, m.from_, m.term, m.log_term],
        varint(m.index),
    ]
    for entry in m.entries:
        data = encode_entry(entry)
        out += (b"\x3a", varint(len(data)), data)
    out.append(b"\x40" + varint(m.commit))
    if m.snapshot is not None:
        out.append(bytes_field(9, encode_snapshot(m.snapshot)))
    out.append(b"\x50%c\x58%b" % (m.reject, varint(m.reject_hint)))
    if m.context:
        out.append(bytes_field(12, m.context))
    if m.vote:
        out.append(uint_field(13, m.vote))
    out += (bytes_field(14, encode_message(response)) for response in m.responses)
    return b"".join(out)


# Varint fields of a message, by tag.
_SCALARS: Final = {
    0x20: "term",
    0x28: "log_term",
    0x30: "index",
    0x40: "commit",
    0x58: "reject_hint",
    0x68: "vote",
}
_MEMBERS: Final = {0x10: "to", 0x18: "from_"}
_TYPE: Final = 0x08
_ENTRIES: Final = 0x3A
_LONGEST: Final = 10  # bytes of a varint

_MAX_DEPTH: Final = 4


class _MemberIDs(dict[bytes, tuple[int, int]]):
    """Value and length of the varints that members have for ids, by the ten bytes from where they
    begin. An id has nine or ten bytes and costs as much as the rest of a short message."""

    def __missing__(self, key: bytes) -> tuple[int, int]:
        if len(self) >= _MOST_PARTS:
            self.clear()
        self[key] = value = read_varint(key, 0, len(key))
        return value


_member_ids: Final = _MemberIDs()


def decode_message(buf: bytes, start: int = 0, end: int | None = None) -> Message:
    """The message in ``buf[start:end]``; raises DecodeError. The empty snapshot that etcd 3.5 puts
    into every message is left out."""
    return _read_message(buf, start, len(buf) if end is None else end, 0)


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
        elif tag == _TYPE:
            value, pos = read_varint(buf, pos + 1, end)
            m.type = _member(_MSG_TYPES, value)
        elif tag in _MEMBERS:
            value, pos = _read_member(buf, pos + 1, end)
            setattr(m, _MEMBERS[tag], value)
        elif tag == _ENTRIES:
            length, start = read_varint(buf, pos + 1, end)
            pos = start + length
            if pos > end:
                raise DecodeError("truncated message")
            before = entries[-1] if entries else m  # that an append follows is told before
            entries.append(decode_next_entry(buf, start, pos, before.term, before.index + 1))
        else:
            number, value, start, pos = next(fields(buf, pos, end))
            if number == 14:
                responses.append(_read_message(buf, start, pos, depth + 1))
            else:
                _set_rare_field(m, number, value, buf[start:pos])
    m.entries = entries
    m.responses = responses
    return m


def _read_member(buf: bytes, pos: int, end: int) -> tuple[int, int]:
    if pos + _LONGEST > end:
        return read_varint(buf, pos, end)
    value, length = _member_ids[buf[pos : pos + _LONGEST]]
    return value, pos + length


def _set_rare_field(m: Message, number: int, value: int, content: bytes) -> None:
    if number == 9:
        snapshot = decode_snapshot(content)
        m.snapshot = None if snapshot == _NO_SNAPSHOT else snapshot
    elif number == 10:
        m.reject = bool(value)
    elif number == 12:
        m.context = content


_NO_SNAPSHOT: Final = Snapshot()
