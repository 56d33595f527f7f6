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
    """Cuts what arrives into messages. ``held`` bytes wait for the rest of theirs."""

    __slots__ = ("_buffer", "_gzip", "_limit")

    def __init__(self, limit: int, gzip: bool) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._gzip = gzip

    @property
    def held(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> bytes | None:
        """The next complete message; None if there is none. RpcError ends the stream."""
        buffer = self._buffer
        if len(buffer) < PREFIX_SIZE:
            return None
        size = int.from_bytes(buffer[1:5], "big")
        if size > self._limit:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({size} vs. {self._limit})",
            )
        end = PREFIX_SIZE + size
        if len(buffer) < end:
            return None
        flag = buffer[0]
        message = bytes(memoryview(buffer)[PREFIX_SIZE:end])
        if flag:
            message = self._unpack(flag, message)
        del buffer[:end]
        return message

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
