"""Just enough of the protobuf wire format for raft's own messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvorum.raft.errors import DecodeError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK64: Final = (1 << 64) - 1

Span = tuple[int, int]
"""Start and end of a length-delimited field's content."""


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
    value = shift = 0
    while pos < end and shift < 70:
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, pos
        shift += 7
    raise DecodeError("bad varint")


def fields(buf: bytes, pos: int, end: int) -> Iterator[tuple[int, int, Span]]:
    """Every field in ``buf[pos:end]`` as (number, value, span).

    A varint comes with its value and an empty span; anything else with value 0 and its span.
    Raises DecodeError for bytes that are no protobuf message.
    """
    while pos < end:
        tag, pos = read_varint(buf, pos, end)
        wire = tag & 7
        value, start = 0, pos
        if wire == _VARINT:
            value, pos = read_varint(buf, pos, end)
            start = pos
        elif wire == _BYTES:
            length, start = read_varint(buf, pos, end)
            pos = start + length
        elif wire == _FIXED64:
            pos += 8
        elif wire == _FIXED32:
            pos += 4
        else:
            raise DecodeError(f"wire type {wire} is not supported")
        if pos > end or tag < 8:
            raise DecodeError("truncated field" if pos > end else "field number 0")
        yield tag >> 3, value, (start, pos)


def uint_field(number: int, value: int) -> bytes:
    """A varint field, written also when it is 0."""
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field, written also when it is empty."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def read_uints(buf: bytes, value: int, span: Span) -> list[int]:
    """A repeated integer's share of one field, packed or not."""
    pos, end = span
    if pos == end:
        return [value]
    values = []
    while pos < end:
        value, pos = read_varint(buf, pos, end)
        values.append(value)
    return values
