"""Hand-made protobuf pieces for the few messages that are too hot for a message object."""

from __future__ import annotations

from typing import Final

_U64: Final = (1 << 64) - 1

# Two varint bytes for 14 bits: the last two of a number, and two that others follow.
_LAST: Final = tuple(
    bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7]) for n in range(1 << 14)
)
MORE14: Final = tuple(bytes([n & 127 | 128, n >> 7 | 128]) for n in range(1 << 14))


def varint(n: int) -> bytes:
    """The varint of ``n``, 0 <= n < 2**64; for a negative int64 see `varint64`."""
    if n < 16384:
        return _LAST[n]
    if n < 268435456:
        return MORE14[n & 16383] + _LAST[n >> 14]
    return MORE14[n & 16383] + varint(n >> 14)


def varint64(n: int) -> bytes:
    """The varint of an int64: a negative one takes ten bytes, as its two's complement."""
    return varint(n & _U64)


def tag(number: int, wire_type: int) -> bytes:
    """The key that stands before a field. Wire types: 0 varint, 2 length-delimited."""
    return varint(number << 3 | wire_type)


_FEW: Final = 128
_VARINT_KEYS: Final = tuple(tag(number, 0) for number in range(_FEW))
_DELIMITED_KEYS: Final = tuple(tag(number, 2) for number in range(_FEW))


def delimited(number: int, payload: bytes) -> bytes:
    """A length-delimited field (number below 128), also when it is empty."""
    return b"%b%b%b" % (_DELIMITED_KEYS[number], varint(len(payload)), payload)


def int64_field(number: int, value: int) -> bytes:
    """An int64 field (number below 128) as proto3 writes it: left out when zero."""
    if value > 0:
        return _VARINT_KEYS[number] + varint(value)
    return _VARINT_KEYS[number] + varint(value & _U64) if value else b""
