"""HPACK (RFC 7541), shaped for heads that repeat.

The tables and Huffman code are those of the ``hpack`` library. The loop is our own for three
reasons: a block of indexed fields costs a fraction of the library's time (a Go client with a
deadline sends a new block for each call, so the cache of whole blocks does not help it); a header
list that is too large must not cost the connection; and ``generation`` tells callers when a block's
meaning may have changed, which makes caching by raw bytes safe.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hpack.huffman_table import (
    HUFFMAN_COMPLETE,
    HUFFMAN_EMIT_SYMBOL,
    HUFFMAN_FAIL,
    HUFFMAN_TABLE,
)
from hpack.table import HeaderTable

from kvorum.h2.frames import ConnectionFault, ErrorCode

Field = tuple[bytes, bytes]

STATIC: Final[tuple[Field, ...]] = tuple(HeaderTable.STATIC_TABLE)
FIRST_DYNAMIC: Final = len(STATIC) + 1  # RFC 7541 section 2.3.3: one address space, from 1
ENTRY_OVERHEAD: Final = 32  # section 4.1
TABLE_SIZE: Final = 4096  # RFC 9113 section 6.5.2, the default that we leave in force

# Section 5.1 leaves the bound to us: no index, length or size we accept needs more than 32 bits.
_MAX_INTEGER_BYTES: Final = 5

# An indexed field is no larger than the table, a literal no larger than what the block holds of it;
# Huffman codes have at least five bits, so that text grows to 8/5 at most.
_LARGEST_FIELD: Final = TABLE_SIZE


def _fault(reason: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, reason)


def _integer(block: bytes, pos: int, mask: int) -> tuple[int, int]:
    """The integer whose prefix is at ``pos`` (section 5.1), and the position after it."""
    value = block[pos] & mask
    pos += 1
    if value < mask:
        return value, pos
    shift = 0
    for byte in block[pos : pos + _MAX_INTEGER_BYTES]:
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise _fault("integer too long or cut short")


# What a byte does in a state of the library's decoder, which goes by nibbles: (next state, flags,
# text). Filled as bytes are met; there are fewer than 256 states.
_steps: dict[int, tuple[int, int, bytes]] = {}


def _step(state: int, byte: int) -> tuple[int, int, bytes]:
    text = b""
    flags = 0
    for nibble in (byte >> 4, byte & 0x0F):
        state, flags, symbol = HUFFMAN_TABLE[state * 16 + nibble]
        if flags & HUFFMAN_FAIL:
            raise _fault("invalid Huffman code (section 5.2)")
        if flags & HUFFMAN_EMIT_SYMBOL:
            text += bytes((symbol,))
    return state, flags, text


def _decode_huffman(raw: bytes) -> bytes:
    state = 0
    flags = HUFFMAN_COMPLETE
    parts = []
    steps = _steps
    for byte in raw:
        key = state << 8 | byte
        step = steps.get(key)
        if step is None:
            step = steps[key] = _step(state, byte)
        state, flags, text = step
        parts.append(text)
    if not flags & HUFFMAN_COMPLETE:
        raise _fault("Huffman code cut short or padded wrongly (section 5.2)")
    return b"".join(parts)


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """The string literal at ``pos`` (section 5.2), and the position after it."""
    huffman = block[pos] & 0x80
    length = block[pos] & 0x7F
    if length == 0x7F:
        length, pos = _integer(block, pos, 0x7F)
    else:
        pos += 1
    end = pos + length
    if end > len(block):
        raise _fault("string literal cut short")
    raw = block[pos:end]
    return (_decode_huffman(raw) if huffman else raw), end


class Decoder:
    """The decoding side of one connection.

    ``generation`` grows with every change to the dynamic table. A block that was decoded without a
    change means the same as long as the number stays the same.
    """

    __slots__ = ("_capacity", "_size", "_table", "generation")

    def __init__(self) -> None:
        # One list for both tables, so that an index is a subscript; dynamic entries newest first.
        self._table: list[Field] = [(b"", b""), *STATIC]
        self._size = 0
        self._capacity = TABLE_SIZE
        self.generation = 0

    def decode(self, block: bytes, max_list_size: int) -> list[Field] | None:
        """The fields of a whole block, or None if they are larger than ``max_list_size`` bytes.

        The dynamic table follows the block to its end either way. Raises ConnectionFault
        (COMPRESSION_ERROR) for a block that breaks RFC 7541.
        """
        try:
            fields = self._decode(block)
        except IndexError:
            raise _fault("block cut short or index out of range") from None
        # Fields are references into the tables until somebody copies them, so a list that is too
        # large has cost little yet; and a short block cannot make one.
        if len(fields) * _LARGEST_FIELD + 2 * len(block) > max_list_size:
            sizes = (len(name) + len(value) + ENTRY_OVERHEAD for name, value in fields)
            if sum(sizes) > max_list_size:
                return None
        return fields

    def _decode(self, block: bytes) -> list[Field]:
        table = self._table
        fields: list[Field] = []
        append = fields.append
        pos = 0
        end = len(block)
        while pos < end:
            first = block[pos]
            if 0x80 < first < 0xFF:
                append(table[first & 0x7F])
                pos += 1
            elif first >= 0x80:
                index, pos = _integer(block, pos, 0x7F)
                append(self._entry(index))
            elif first >= 0x40:
                field, pos = self._literal(block, pos, 0x3F)
                self._insert(field)
                append(field)
            elif first >= 0x20:
                if fields:
                    raise _fault("table size update after a field (section 4.2)")
                pos = self._resize(block, pos)
            else:
                field, pos = self._literal(block, pos, 0x0F)
                append(field)
        return fields

    def _entry(self, index: int) -> Field:
        if index == 0:
            raise _fault("index 0 (section 6.1)")
        return self._table[index]

    def _literal(self, block: bytes, pos: int, mask: int) -> tuple[Field, int]:
        index = block[pos] & mask
        if index == 0:
            name, pos = _string(block, pos + 1)
        else:
            if index < mask:
                pos += 1
            else:
                index, pos = _integer(block, pos, mask)
            name = self._table[index][0]
        value, pos = _string(block, pos)
        return (name, value), pos

    def _insert(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        self.generation += 1
        if self._size + size > self._capacity:
            self._evict(self._capacity - size)
        if size <= self._capacity:
            self._table.insert(FIRST_DYNAMIC, field)
            self._size += size

    def _evict(self, target: int) -> None:
        """Drop the oldest entries until ``target`` bytes or none are left (section 4.3, 4.4)."""
        table = self._table
        while self._size > target and len(table) > FIRST_DYNAMIC:
            name, value = table.pop()
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD

    def _resize(self, block: bytes, pos: int) -> int:
        capacity, pos = _integer(block, pos, 0x1F)
        if capacity > TABLE_SIZE:
            raise _fault("table size update above the announced size (section 6.3)")
        self.generation += 1
        self._capacity = capacity
        self._evict(capacity)
        return pos


_STATIC_FIELDS: Final = {field: at for at, field in reversed(list(enumerate(STATIC, 1)))}
_STATIC_NAMES: Final = {field[0]: at for at, field in reversed(list(enumerate(STATIC, 1)))}


def _encode_integer(value: int, mask: int, pattern: int) -> bytes:
    if value < mask:
        return bytes((pattern | value,))
    out = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(fields: Iterable[Field]) -> bytes:
    """A header block that neither uses nor changes the dynamic table, without Huffman coding.

    Such blocks can be built once and sent on any connection.
    """
    parts: list[bytes] = []
    for name, value in fields:
        exact = _STATIC_FIELDS.get((name, value))
        if exact is not None:
            parts.append(_encode_integer(exact, 0x7F, 0x80))
            continue
        index = _STATIC_NAMES.get(name, 0)
        parts.append(_encode_integer(index, 0x0F, 0x00))
        if not index:
            parts.append(_encode_integer(len(name), 0x7F, 0x00) + name)
        parts.append(_encode_integer(len(value), 0x7F, 0x00) + value)
    return b"".join(parts)
