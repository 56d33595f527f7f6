"""KeyValue records, written and read by hand.

A record is the protobuf message ``mvccpb.KeyValue`` in canonical form: fields in ascending order,
shortest varints, zero fields left out. Records go into HashKV as they are, so this form may never
vary. Its layout, and what that is good for::

    0a len key | 10 create | 18 mod | 20 version | 2a len value | 30 lease
    |-------- what keys-only readers get --------|

A tombstone's record is the key alone.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_SMALL: Final = 1 << 14
_MEDIUM: Final = 1 << 28


def _varint(number: int) -> bytes:
    """Any number up to 64 bits; negative ones as their two's complement."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# Tables for the numbers that occur: a revision costs one or two look-ups instead of a loop.
_VARINT: Final = [_varint(n) for n in range(_SMALL)]
_LOW: Final = [bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(_SMALL)]
_KEY: Final = [b"\x0a" + v for v in _VARINT]
_VERSION: Final = [b"\x20" + v for v in _VARINT]
_VALUE: Final = [b"\x2a" + v for v in _VARINT]
_VALUE[0] = b""


_NUMBERS: Final = re.compile(
    rb"\x10[\x80-\xff]*[\x00-\x7f]\x18[\x80-\xff]*[\x00-\x7f]\x20[\x80-\xff]*[\x00-\x7f]"
)
"""The three numbers of a put: a regular expression finds their end faster than Python can."""


def varint(number: int) -> bytes:
    """A number as a protobuf varint."""
    if 0 <= number < _SMALL:
        return _VARINT[number]
    if 0 <= number < _MEDIUM:
        return _LOW[number & 0x3FFF] + _VARINT[number >> 14]
    return _varint(number)


def encode(key: bytes, create: int, mod: int, version: int, value: bytes, lease: int) -> bytes:
    """The record of a put; all numbers but the lease are at least 1."""
    mod_bytes = _LOW[mod & 0x3FFF] + _VARINT[mod >> 14] if _SMALL <= mod < _MEDIUM else varint(mod)
    create_bytes = mod_bytes if create == mod else varint(create)
    try:
        head, ver, length = _KEY[len(key)], _VERSION[version], _VALUE[len(value)]
    except IndexError:
        head = b"\x0a" + varint(len(key))
        ver = b"\x20" + varint(version)
        length = b"\x2a" + varint(len(value)) if value else b""
    parts = (head, key, b"\x10", create_bytes, b"\x18", mod_bytes, ver, length, value)
    if lease:
        return b"".join((*parts, b"\x30", varint(lease)))
    return b"".join(parts)


def encode_tombstone(key: bytes) -> bytes:
    """The record of a delete."""
    return b"\x0a" + varint(len(key)) + key


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at an offset, and the offset behind it."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    number, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at + 1
        shift += 7


def key_of(record: bytes) -> bytes:
    """The user key. A record of 0 bytes, which ``snapshot restore --bump-revision`` leaves, has
    the empty one."""
    if not record:
        return b""
    length = record[1]
    if length < 0x80:
        return record[2 : 2 + length]
    length, at = read_varint(record, 1)
    return record[at : at + length]


class Header(NamedTuple):
    """The numbers of a record, and the offset behind the version."""

    create: int
    mod: int
    version: int
    end: int


def header_of(record: bytes) -> Header:
    """create_revision, mod_revision and version; 0 where the record (a tombstone) has none."""
    if not record:
        return Header(0, 0, 0, 0)
    length, at = read_varint(record, 1)
    at += length
    end = len(record)
    create = mod = version = 0
    if at < end and record[at] == 0x10:
        create, at = read_varint(record, at + 1)
    if at < end and record[at] == 0x18:
        mod, at = read_varint(record, at + 1)
    if at < end and record[at] == 0x20:
        version, at = read_varint(record, at + 1)
    return Header(create, mod, version, at)


def create_and_version(record: bytes) -> tuple[int, int]:
    """create_revision and version of a put's record: `header_of` for the hot path.

    Raises IndexError for a record that has not got them.
    """
    length = record[1]
    at = 2 + length
    if length > 0x7F:
        length, at = read_varint(record, 1)
        at += length
    assert record[at] == 0x10, f"no create revision in {record[:64]!r}"
    create = 0
    shift = 0
    while (byte := record[at := at + 1]) > 0x7F:
        create |= (byte & 0x7F) << shift
        shift += 7
    create |= byte << shift
    at += 1
    while record[at := at + 1] > 0x7F:
        pass
    version = record[at + 2]
    if version > 0x7F:
        version, _ = read_varint(record, at + 2)
    return create, version


def without_value(record: bytes) -> bytes:
    """The record cut before the value, which is what a keys-only range returns (no lease either,
    as in etcd 3.7)."""
    length = record[1] if record else 0
    numbers = _NUMBERS.match(record, 2 + length) if length < 0x80 else None
    return record[: numbers.end() if numbers else header_of(record).end]


def lease_of(record: bytes) -> int:
    """The lease id (signed), 0 without."""
    # A lease is the last field and at most 11 bytes, so most records need no walk.
    if 0x30 not in record[-11:-1]:
        return 0
    at = header_of(record).end
    if at < len(record) and record[at] == 0x2A:
        length, at = read_varint(record, at + 1)
        at += length
    if at >= len(record) or record[at] != 0x30:
        return 0
    lease, _ = read_varint(record, at + 1)
    return lease - (1 << 64) if lease >> 63 else lease


def value_of(record: bytes) -> bytes:
    """The value, empty without."""
    at = header_of(record).end
    if at >= len(record) or record[at] != 0x2A:
        return b""
    length, at = read_varint(record, at + 1)
    return record[at : at + length]
