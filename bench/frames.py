"""HTTP/2 frames and gRPC requests as ready-made bytes (RFC 9113; gRPC over HTTP/2)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import hpack

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PRIORITIZED: Final = 32

SETTINGS_ENABLE_PUSH: Final = 2
SETTINGS_MAX_CONCURRENT_STREAMS: Final = 3
SETTINGS_INITIAL_WINDOW_SIZE: Final = 4
SETTINGS_MAX_FRAME_SIZE: Final = 5

DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
MAX_FRAME: Final = 16_384

HEAD: Final = struct.Struct(">IBI")
"""A frame's 9 bytes read as (length << 8 | type, flags, stream id)."""

GRPC_PREFIX: Final = struct.Struct(">BI")
USER_AGENT: Final = "grpc-kvorum-bench/1.0"

_STATIC_NAMES: Final = {":authority": 1, ":path": 4, "content-type": 31, "user-agent": 58}
_STATIC_FIELDS: Final = {(":method", "POST"): b"\x83", (":scheme", "http"): b"\x86"}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame; ``payload`` must not be longer than the peer's maximum (16,384 by default)."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    pairs = (struct.pack(">HI", name, value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def window_update(stream: int, credit: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, credit.to_bytes(4, "big"))


def envelope(message: bytes) -> bytes:
    """The message with gRPC's five bytes (not compressed, length) before it."""
    return GRPC_PREFIX.pack(0, len(message)) + message


def split_messages(buffer: bytes) -> tuple[list[bytes], bytes]:
    """The whole gRPC messages in ``buffer`` and the bytes of the next, unfinished one."""
    messages = []
    position = 0
    while len(buffer) - position >= 5:
        compressed, size = GRPC_PREFIX.unpack_from(buffer, position)
        if compressed:
            raise ValueError("a compressed gRPC message, though none was asked for")
        if len(buffer) - position - 5 < size:
            break
        messages.append(buffer[position + 5 : position + 5 + size])
        position += 5 + size
    return messages, buffer[position:]


def request_headers(path: str, authority: str) -> list[tuple[str, str]]:
    """The header list of a gRPC request as common clients send it."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("user-agent", USER_AGENT),
        ("te", "trailers"),
    ]


def _integer(value: int, bits: int, first: int = 0) -> bytes:
    """An HPACK integer with a prefix of ``bits`` bits (RFC 7541 section 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    out = bytearray([first | limit])
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def stateless_block(headers: Sequence[tuple[str, str]]) -> bytes:
    """An HPACK block that neither reads nor changes the dynamic table: it can be replayed."""
    out = []
    for name, value in headers:
        field = _STATIC_FIELDS.get((name, value))
        if field is None:
            index = _STATIC_NAMES.get(name, 0)
            literal = b"" if index else _integer(len(name), 7) + name.encode()
            field = _integer(index, 4) + literal + _integer(len(value), 7) + value.encode()
        out.append(field)
    return b"".join(out)


class HeaderBlocks:
    """The header blocks of one connection: what to send first for each path, and from then on.

    With ``indexed`` the first request of a path puts its fields into the peer's dynamic table and
    the following ones are a few index bytes, which is what real clients send; otherwise all are
    stateless. All connections that prime the same paths in the same order share the bytes.
    """

    __slots__ = ("first", "steady")

    def __init__(self, paths: Sequence[str], authority: str, *, indexed: bool) -> None:
        lists = {path: request_headers(path, authority) for path in paths}
        if indexed:
            encoder = hpack.Encoder()
            self.first = {path: encoder.encode(fields) for path, fields in lists.items()}
            self.steady = {path: encoder.encode(fields) for path, fields in lists.items()}
        else:
            self.first = {path: stateless_block(fields) for path, fields in lists.items()}
            self.steady = self.first


def request_parts(block: bytes, size: int) -> tuple[bytes, bytes, bytes]:
    """The bytes before, between and after a unary request's two stream ids, up to the message.

    ``size`` is the message's length; the message must fit one DATA frame.
    """
    if size + 5 > MAX_FRAME:
        raise ValueError(f"a message of {size} bytes does not fit one frame of {MAX_FRAME}")
    headers = HEAD.pack(len(block) << 8 | HEADERS, END_HEADERS, 0)[:5]
    data = HEAD.pack(size + 5 << 8 | DATA, END_STREAM, 0)[:5]
    return headers, block + data, GRPC_PREFIX.pack(0, size)


def data_frames(stream: int, payload: bytes, *, end: bool) -> bytes:
    """``payload`` as DATA frames of at most 16,384 bytes, the last with END_STREAM if ``end``."""
    if not payload:
        return frame(DATA, END_STREAM if end else 0, stream)
    out = []
    for start in range(0, len(payload), MAX_FRAME):
        last = start + MAX_FRAME >= len(payload)
        flags = END_STREAM if end and last else 0
        out.append(frame(DATA, flags, stream, payload[start : start + MAX_FRAME]))
    return b"".join(out)
