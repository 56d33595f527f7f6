"""Frames and records of the log, as etcd lays them out.

A frame is a little-endian length word, a ``walpb.Record``, and zeros to the next multiple of 8::

    04 00 00 00 00 00 00 84 | 08 04 10 00 | 00 00 00 00
    length 4, 4 of padding  | type, crc   | padding

The low 56 bits of the length word are the record's length; the top byte is 0 without padding,
else 0x80 or'ed with its length. A length word of 0 ends the written part of a file.
"""

from __future__ import annotations

from contextlib import suppress
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError

from kvorum.pb import walpb

FRAME_HEAD: Final = 8
SECTOR: Final = 512
"""A disk writes this much as a whole; what an interrupted write left out is zeros of this size."""

_LENGTH_BITS: Final = 56
_LENGTH_MASK: Final = (1 << _LENGTH_BITS) - 1


class RecordType(IntEnum):
    METADATA = 1
    ENTRY = 2
    STATE = 3
    CRC = 4
    SNAPSHOT = 5


def varint(value: int) -> bytes:
    """Groups of seven bits, lowest first, each but the last marked."""
    assert value >= 0
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_word(length: int) -> bytes:
    assert 0 < length <= _LENGTH_MASK
    padding = -length % 8
    flag = 0x80 | padding if padding else 0
    return (flag << _LENGTH_BITS | length).to_bytes(8, "little")


def split_length_word(word: int) -> tuple[int, int]:
    """(record length, padding length) of an unsigned length word."""
    padding = word >> _LENGTH_BITS & 7 if word >> 63 else 0
    return word & _LENGTH_MASK, padding


def encode_frame(kind: RecordType, crc: int, data: bytes | None) -> bytes:
    """A whole frame. ``data`` is None for a CRC record, which has no such field."""
    record = b"\x08%c\x10%b" % (kind, varint(crc))
    if data is not None:
        record += b"\x1a%b%b" % (varint(len(data)), data)
    return length_word(len(record)) + record + bytes(-len(record) % 8)


def parse_record(record: bytes) -> tuple[int, int, bytes]:
    """(type, crc, data) of a record; raises ValueError if it is not one.

    The form every etcd writes is taken apart here; protobuf reads the others that it allows.
    """
    end = len(record)
    with suppress(IndexError):
        if record[0] == 0x08 and record[1] < 0x80 and record[2] == 0x10:
            crc, at = _read_varint(record, 3)
            if at == end and crc < 1 << 32:
                return record[1], crc, b""
            if record[at] == 0x1A and crc < 1 << 32:
                length, at = _read_varint(record, at + 1)
                if at + length == end:
                    return record[1], crc, record[at:]
    try:
        message = walpb.Record.FromString(record)
    except DecodeError as error:
        raise ValueError("not a record") from error
    return message.type, message.crc, message.data


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The value and where it ends; raises IndexError if it does not end, or not in ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError


def looks_torn(frame: bytes, offset: int) -> bool:
    """Whether a frame's body, which starts at ``offset`` in its file, misses a whole sector.

    The body is cut at the file's sector bounds; a piece of nothing but zeros was never written.
    """
    at = 0
    while at < len(frame):
        end = min(at + SECTOR - (offset + at) % SECTOR, len(frame))
        if not any(frame[at:end]):
            return True
        at = end
    return False
