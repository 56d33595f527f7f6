"""The parts of a frame that depend on its length alone, kept for the lengths that come again.

Nearly all of a frame around an entry is the same for entries of one size. The checksum is not,
but fifteen of sixteen take five bytes as a varint; a frame with a shorter one has no shape.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvorum.wal.record import FRAME_HEAD, length_word, split_length_word, varint

FIVE_BYTES: Final = 1 << 28
"""The smallest checksum that takes five bytes."""

PAIRS: Final = tuple(bytes((i & 0x7F | 0x80, i >> 7 | 0x80)) for i in range(1 << 14))
"""14 bits of a checksum as two bytes of a varint that goes on."""

LAST: Final = tuple(bytes((i,)) for i in range(16))
"""The highest 4 of its 32 bits as the last byte."""

MAX_SHAPES: Final = 4096
_CRC_END: Final = 8
"""Type and checksum take this much of a record."""


class WriteShape(NamedTuple):
    """A frame is ``head``, checksum, ``middle``, data, ``padding``: ``size`` bytes."""

    head: bytes
    middle: bytes
    padding: bytes
    size: int


class ReadShape(NamedTuple):
    """What a length word says: a record of ``length`` bytes, ``total`` with the padding. In the
    usual form its data starts at ``start``, after ``middle``; a length that cannot have that form
    has a ``middle`` that does not fit."""

    length: int
    total: int
    start: int
    middle: bytes


class WriteShapes(dict[int, WriteShape]):
    """By the length of the data."""

    def __missing__(self, length: int) -> WriteShape:
        middle = b"\x1a" + varint(length)
        record = _CRC_END + len(middle) + length
        padding = bytes(-record % 8)
        head = length_word(record) + b"\x08\x02\x10"
        shape = WriteShape(head, middle, padding, FRAME_HEAD + record + len(padding))
        if len(self) >= MAX_SHAPES:
            self.clear()
        self[length] = shape
        return shape


class ReadShapes(dict[bytes, ReadShape]):
    """By the length word."""

    def __missing__(self, head: bytes) -> ReadShape:
        length, padding = split_length_word(int.from_bytes(head, "little"))
        shape = ReadShape(length, length + padding, *_data_start(length))
        if len(self) >= MAX_SHAPES:
            self.clear()
        self[head] = shape
        return shape


def _data_start(record: int) -> tuple[int, bytes]:
    for digits in range(1, 9):
        length = record - _CRC_END - 1 - digits
        if length >= 0 and len(data_head := varint(length)) == digits:
            return record - length, b"\x1a" + data_head
    return _CRC_END, b"?"
