"""Requests in the raft log: which kinds there are, and their bytes.

A log entry holds an InternalRaftRequest: a header with the request's id, and one request of one
kind. A client's request goes in byte for byte as it came.
"""

from __future__ import annotations

from typing import Any, Final

from kvorum.pb import etcdserverpb as pb
from kvorum.pb.wire import MORE14, delimited, int64_field, tag, varint
from kvorum.types import MemberID

_FIELDS: Final = {
    field.name: field
    for field in pb.InternalRaftRequest.DESCRIPTOR.fields
    if field.name not in ("ID", "header")
}
TAGS: Final = {name: tag(field.number, 2) for name, field in _FIELDS.items()}
"""The key bytes of each kind of request, by its name: ``put``, ``txn``, ``lease_grant`` ..."""

_HEADER_TAG: Final = tag(100, 2)
_PLAIN_HEADS: Final = tuple(_HEADER_TAG + varint(1 + size) + b"\x08" for size in range(11))
"""What stands before the id in a header that has nothing else, by the size of the id's varint."""
_ID_HEADS: Final = tuple(_HEADER_TAG + bytes((1 + size, 8)) for size in range(11))
_LEAST: Final = 7


class RequestIds:
    """Ids no other request of the cluster has: the low 16 bits of the member id, then a counter
    that starts from the clock, so that a restarted member does not repeat itself
    (etcd's idutil layout: 40 bits of milliseconds, 8 bits of count).
    """

    __slots__ = ("_count", "_high", "_upper", "_upper_bytes")

    def __init__(self, member: MemberID, unix_ms: int) -> None:
        self._high = (member & 0xFFFF) << 48
        self._count = (unix_ms & ((1 << 40) - 1)) << 8
        self._upper = -1
        self._upper_bytes = b""

    def next(self) -> int:
        self._count = (self._count + 1) & ((1 << 48) - 1)
        return self._high | self._count

    def take(self) -> tuple[int, bytes]:
        """The next id, and its varint. All but the last 14 bits of a varint stay the same for
        16,384 ids in a row."""
        self._count = count = (self._count + 1) & ((1 << 48) - 1)
        request_id = self._high | count
        upper = request_id >> 14
        if upper != self._upper:
            self._upper = upper
            self._upper_bytes = varint(upper)
        return request_id, MORE14[request_id & 16383] + self._upper_bytes


def encode_request(
    kind: str, message: bytes, request_id: bytes, user: str = "", auth_revision: int = 0
) -> bytes:
    """An InternalRaftRequest around an already encoded request.

    ``request_id`` is the varint that `RequestIds.take` gives.
    """
    if user:
        rest = delimited(2, user.encode()) + int64_field(3, auth_revision)
        head = _HEADER_TAG + varint(1 + len(request_id) + len(rest)) + b"\x08"
    else:
        rest = b""
        head = _PLAIN_HEADS[len(request_id)]
    return b"".join((TAGS[kind], varint(len(message)), message, head, request_id, rest))


_PLAIN: Final = {
    TAGS[name][0]: (name, getattr(pb, field.message_type.name).FromString)
    for name, field in _FIELDS.items()
    if len(TAGS[name]) == 1 and field.message_type is not None
}
"""Name and parser of the kinds whose key is one byte, by that byte."""

_HIGH_BITS: Final = tuple(int.from_bytes(b"\x80" * n, "little") for n in range(11))
"""The bit that says of a varint's byte that another follows, for so many bytes."""


def decode_plain(data: bytes) -> tuple[str, Any, int] | None:
    """Kind, message, and where the id begins, of an entry that is shaped as nearly all are: a
    request of a low field number, then a header with an id and nothing else. None for another one.
    Half the cost of `decode_request`, to a follower a tenth of all.

    Raises:
        google.protobuf.message.DecodeError: the request does not parse.
    """
    length = len(data)
    if length < _LEAST:
        return None
    found = _PLAIN.get(data[0])
    if found is None:
        return None
    size, start = _length_at(data, 1)
    end = start + size
    id_size = length - end - 4
    if not 0 < id_size <= 10 or data[end : end + 4] != _ID_HEADS[id_size]:
        return None
    high = _HIGH_BITS[id_size]
    if int.from_bytes(data[end + 4 :], "little") & high != high >> 8:
        return None  # the header goes on after the id
    return found[0], found[1](data[start:end]), end + 4


def _length_at(data: bytes, at: int) -> tuple[int, int]:
    """A length of up to five bytes, and what comes after it; more than is there if it is none."""
    size = data[at]
    if size < 128:
        return size, at + 1
    size &= 127
    for place in range(1, 5):
        byte = data[at + place] if at + place < len(data) else 0
        size |= (byte & 127) << 7 * place
        if byte < 128:
            return size, at + place + 1
    return len(data), at


def decode_id(data: bytes, at: int) -> int:
    """The id that begins at a place and ends with the data."""
    number = 0
    for byte in reversed(data[at:]):
        number = number << 7 | byte & 127
    return number


def decode_request(data: bytes) -> tuple[int, str, Any]:
    """The id, kind and message of a log entry.

    Raises:
        ValueError: the entry holds no request, or more than one.
        google.protobuf.message.DecodeError: the bytes do not parse.
    """
    request = pb.InternalRaftRequest.FromString(data)
    kinds = [(f.name, value) for f, value in request.ListFields() if f.name in TAGS]
    if len(kinds) != 1:
        raise ValueError(f"a log entry with {len(kinds)} requests: {[name for name, _ in kinds]}")
    return request.header.ID or request.ID, kinds[0][0], kinds[0][1]
