"""Just enough of the protobuf wire format for raft's own messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvorum.raft.errors import DecodeError

_VARINT, _BYTES = 0, 2
_FIXED: Final = {1: 8, 5: 4}  # bytes by wire type
_MASK64: Final = (1 << 64) - 1


def varint(value: int) -> bytes:
    """``value`` (0 to 2**64 - 1) in groups of seven bits, lowest first."""
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL: Final = tuple(bytes((value,)) for value in range(0x80))


def read_varint(buf: bytes, pos: int, end: int) -> tuple[int, int]:
    """The varint at ``pos`` and the position after it; raises DecodeError."""
    if pos < end and buf[pos] < 0x80:
        return buf[pos], pos + 1
    value = shift = 0
    while pos < end and shift < 70:
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, pos
        shift += 7
    raise DecodeError("bad varint")


Field = tuple[int, int, int, int]
"""A field's number; its value if it is a varint, else 0; where its content begins and ends."""


def fields(buf: bytes, pos: int, end: int) -> Iterator[Field]:
    """Every field in ``buf[pos:end]``; a varint's content is empty.

    Raises DecodeError for bytes that are no protobuf message.
    """
    while pos < end:
        tag = buf[pos]
        pos += 1
        if tag >= 0x80:
            tag, pos = read_varint(buf, pos - 1, end)
        if tag < 8:
            raise DecodeError("field number 0")
        wire = tag & 7
        if wire == _VARINT:
            value, pos = read_varint(buf, pos, end)
            yield tag >> 3, value, pos, pos
            continue
        if wire == _BYTES:
            length, start = read_varint(buf, pos, end)
            pos = start + length
        elif wire in _FIXED:
            start = pos
            pos += _FIXED[wire]
        else:
            raise DecodeError(f"wire type {wire} is not supported")
        if pos > end:
            raise DecodeError("truncated field")
        yield tag >> 3, 0, start, pos


def uint_field(number: int, value: int) -> bytes:
    """A varint field, written also when it is 0."""
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field, written also when it is empty."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def read_uints(buf: bytes, value: int, pos: int, end: int) -> list[int]:
    """A repeated integer's share of one field, packed or not."""
    if pos == end:
        return [value]
    values = []
    while pos < end:
        value, pos = read_varint(buf, pos, end)
        values.append(value)
    return values
