"""WatchResponse bytes, put together by hand.

A response is its header field, its watch_id field and a tail with everything else, in field
order; watchers that get the same events share the header and the tail as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvorum.pb.wire import delimited, int64_field, varint
from kvorum.types import Revision

CREATED: Final = b"\x18\x01"
CANCELED: Final = b"\x20\x01"
MORE_FRAGMENTS: Final = b"\x38\x01"
_EVENT: Final = b"\x5a"  # WatchResponse.events
_DELETE: Final = b"\x08\x01"  # Event.type
_KV: Final = b"\x12"
_PREV_KV: Final = b"\x1a"
_MOD_REVISION: Final = b"\x18"  # KeyValue.mod_revision

_CACHED_SIZES: Final = 1 << 12


def _put_head(size: int) -> bytes:
    length = varint(size)
    return b"%b%b%b%b" % (_EVENT, varint(1 + len(length) + size), _KV, length)


_PUT_HEADS: Final = tuple(map(_put_head, range(_CACHED_SIZES)))


def watch_id_field(id: int) -> bytes:
    return int64_field(2, id)


def put_event(kv: bytes) -> bytes:
    """The events field of a put without a previous value."""
    size = len(kv)
    return (_PUT_HEADS[size] if size < _CACHED_SIZES else _put_head(size)) + kv


def put_event_with_prev(kv: bytes, prev: bytes) -> bytes:
    return delimited(11, b"%b%b%b%b%b%b" % (_KV, varint(len(kv)), kv, *_prev_parts(prev)))


def delete_event(tombstone: bytes, rev: int, prev: bytes | None) -> bytes:
    """The events field of a delete. A stored tombstone has only the key, so that the revision is
    added here, as etcd does."""
    kv = b"%b%b%b" % (tombstone, _MOD_REVISION, varint(rev))
    body = b"%b%b%b%b" % (_DELETE, _KV, varint(len(kv)), kv)
    return delimited(11, body if prev is None else b"%b%b%b%b" % (body, *_prev_parts(prev)))


def _prev_parts(prev: bytes) -> tuple[bytes, bytes, bytes]:
    return _PREV_KV, varint(len(prev)), prev


def cancel_tail(
    *, created: bool = False, compact_rev: Revision | None = None, reason: str = ""
) -> bytes:
    """The rest of a reply that ends a watch, or that refuses one (``created``, as in etcd)."""
    tail = CREATED + CANCELED if created else CANCELED
    if compact_rev is not None:
        tail += int64_field(5, compact_rev)
    return tail + delimited(6, reason.encode()) if reason else tail


def fragments(front: bytes, events: Sequence[bytes], limit: int) -> list[bytes]:
    """A response cut into several below ``limit`` bytes, unless one event alone is larger.

    ``front`` is the header and the watch_id field. All but the last carry the fragment mark. One
    response, without a mark, if it is small enough or has but one event.
    """
    whole = front + b"".join(events)
    if len(whole) < limit or len(events) < 2:
        return [whole]
    front += MORE_FRAGMENTS
    pieces: list[bytes] = []
    start, size = 0, len(front)
    for i, event in enumerate(events):
        if i > start and size + len(event) >= limit:
            pieces.append(front + b"".join(events[start:i]))
            start, size = i, len(front)
        size += len(event)
    pieces.append(front[: -len(MORE_FRAGMENTS)] + b"".join(events[start:]))
    return pieces
