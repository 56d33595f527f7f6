"""gRPC messages within a stream of bytes: one flag, four bytes of length, the message."""

from __future__ import annotations

import zlib
from typing import Final

from kvorum.errors import Code
from kvorum.h2.status import RpcError

PREFIX_SIZE: Final = 5
_GZIP: Final = 16 + zlib.MAX_WBITS  # zlib's way to say: a gzip header and trailer, nothing else


def frame_message(message: bytes) -> bytes:
    """The message with its prefix, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Inbox:
    """Cuts what arrives into messages. ``held`` bytes wait to be taken, or for the rest."""

    __slots__ = ("_at", "_gzip", "_limit", "_need", "_parts", "held")

    def __init__(self, limit: int, gzip: bool) -> None:
        self.held = 0
        self._parts: list[bytes] = []  # joined only once a message is complete
        self._at = 0  # where the next message begins in the first part
        self._need = PREFIX_SIZE
        self._limit = limit
        self._gzip = gzip

    def feed(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
            self.held += len(data)

    def next(self) -> bytes | None:
        """The next complete message; None if there is none. RpcError ends the stream."""
        if self.held < self._need:
            return None
        data = self._joined()
        start = self._at + PREFIX_SIZE
        size = int.from_bytes(data[start - 4 : start], "big")
        if size > self._limit:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({size} vs. {self._limit})",
            )
        self._need = PREFIX_SIZE + size
        if self.held < self._need:
            return None
        message = data[start : start + size]
        if data[self._at]:
            message = self._unpack(data[self._at], message)
        self._at = start + size
        self.held -= self._need
        self._need = PREFIX_SIZE
        if not self.held:
            self._parts.clear()
            self._at = 0
        return message

    def _joined(self) -> bytes:
        parts = self._parts
        if len(parts) > 1:
            if self._at:
                parts[0] = parts[0][self._at :]
                self._at = 0
            parts[:] = [b"".join(parts)]
        return parts[0]

    def _unpack(self, flag: int, message: bytes) -> bytes:
        if flag != 1:
            raise RpcError(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
        if not self._gzip:
            raise RpcError(
                Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding"
            )
        return gunzip(message, self._limit)


def gunzip(packed: bytes, limit: int) -> bytes:
    """The gzip stream's content, never holding more than ``limit`` bytes of it (and one)."""
    out = b""
    while packed or not out:
        inflate = zlib.decompressobj(_GZIP)
        try:
            out += inflate.decompress(packed, limit + 1 - len(out))
        except zlib.error as error:
            raise RpcError(
                Code.INTERNAL, f"grpc: failed to read decompressed data: {error}"
            ) from None
        if len(out) > limit:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message after decompression larger than max {limit}",
            )
        if not inflate.eof:
            raise RpcError(Code.INTERNAL, "grpc: failed to read decompressed data: unexpected EOF")
        packed = inflate.unused_data  # a gzip file may have several members (RFC 1952 2.2)
        if not packed:
            break
    return out
