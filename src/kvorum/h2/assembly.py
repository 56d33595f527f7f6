"""A head that comes in several frames (RFC 9113 section 4.3 and 6.10), bounded."""

from __future__ import annotations

from typing import Final

from kvorum.h2 import frames
from kvorum.h2.frames import (
    END_HEADERS,
    END_STREAM,
    PRIORITY_FLAG,
    ConnectionFault,
    ErrorCode,
)
from kvorum.h2.limits import Limits

_NEVER: Final = float("inf")
_PRIORITY_SIZE: Final = 5

Block = tuple[int, bytes, bool]
"""A complete encoded head: stream id, block, whether the stream ends with it."""


class HeadAssembly:
    """``sid`` is the stream whose head is incomplete, or 0; ``since`` when it began."""

    __slots__ = ("_end", "_limits", "_parts", "_size", "sid", "since")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts: list[bytes] = []
        self._size = 0
        self._end = False
        self.sid = 0
        self.since = _NEVER

    def begin(self, flags: int, sid: int, payload: bytes, now: float) -> Block | None:
        """A HEADERS frame; the block if it is complete with it."""
        block = frames.unpad(flags, payload)
        if flags & PRIORITY_FLAG:
            block = _strip_priority(sid, block)
        end = flags & END_STREAM != 0
        self._bound(len(block), 0)
        if flags & END_HEADERS:
            return sid, block, end
        self._parts = [block]
        self._size = len(block)
        self._end = end
        self.sid = sid
        self.since = now
        return None

    def add(self, flags: int, payload: bytes) -> Block | None:
        """A CONTINUATION frame of the head that is incomplete; the block if it now is not."""
        self._bound(self._size + len(payload), len(self._parts))
        self._parts.append(payload)
        self._size += len(payload)
        if not flags & END_HEADERS:
            return None
        block = (self.sid, b"".join(self._parts), self._end)
        self._parts = []
        self.sid = 0
        self.since = _NEVER
        return block

    def _bound(self, size: int, continuations: int) -> None:
        limits = self._limits
        if size > limits.max_header_block or continuations > limits.max_continuations:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


def _strip_priority(sid: int, block: bytes) -> bytes:
    if len(block) < _PRIORITY_SIZE:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
    if int.from_bytes(block[:4], "big") & 0x7FFFFFFF == sid:
        # RFC 7540 section 5.3.1 had a stream error here, but a head that is not decoded would
        # leave the header table behind. RFC 9113 dropped priorities altogether.
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")
    return block[_PRIORITY_SIZE:]
