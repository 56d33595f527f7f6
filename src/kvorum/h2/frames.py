"""HTTP/2 frames as bytes (RFC 9113 section 4 and 6): numbers, builders, faults.

Frame types, flags and sizes are plain ints, since the frame loop compares them for every frame.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

FRAME_NAMES: Final = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

MAX_STREAM_ID: Final = 2**31 - 1
MAX_WINDOW: Final = 2**31 - 1  # RFC 9113 section 6.9.1
DEFAULT_WINDOW: Final = 65535  # section 6.9.2
DEFAULT_FRAME_SIZE: Final = 16384  # section 4.2; also the smallest that may be announced
MAX_FRAME_SIZE: Final = 2**24 - 1


class ErrorCode(IntEnum):
    """Why a stream or connection ended (RFC 9113 section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """Parameters of a SETTINGS frame (RFC 9113 section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ConnectionFault(Exception):
    """The peer broke a rule of the connection: it gets GOAWAY with this code, and is cut."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """The peer broke a rule of one stream: RST_STREAM with this code, the connection goes on."""

    def __init__(self, sid: int, code: ErrorCode, reason: str) -> None:
        super().__init__(f"stream {sid}: {code.name}: {reason}")
        self.sid = sid
        self.code = code
        self.reason = reason


FRAME_HEAD: Final = Struct(">IBI")
"""Nine bytes of frame header: (payload length << 8 | type, flags, stream id)."""

_SETTING = Struct(">HI")
_RST = Struct(">IBII")
_UPDATE = Struct(">IBII")
_PING_WORD: Final = 8 << 8 | PING


def frame(kind: int, flags: int, sid: int, payload: bytes) -> bytes:
    """One whole frame."""
    return FRAME_HEAD.pack(len(payload) << 8 | kind, flags, sid) + payload


def settings(values: dict[Setting, int]) -> bytes:
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The (parameter, value) pairs of a payload whose length is a multiple of six."""
    return list(_SETTING.iter_unpack(payload))


def rst_stream(sid: int, code: int) -> bytes:
    return _RST.pack(4 << 8 | RST_STREAM, 0, sid, code)


def window_update(sid: int, increment: int) -> bytes:
    return _UPDATE.pack(4 << 8 | WINDOW_UPDATE, 0, sid, increment)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    return FRAME_HEAD.pack(_PING_WORD, ACK if ack else 0, 0) + payload


def goaway(last_sid: int, code: int, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, last_sid.to_bytes(4, "big") + code.to_bytes(4, "big") + debug)


def headers(sid: int, block: bytes, *, end_stream: bool, max_frame: int) -> bytes:
    """A HEADERS frame, with CONTINUATION frames where the block is longer than a frame."""
    end = END_STREAM if end_stream else 0
    if len(block) <= max_frame:
        return frame(HEADERS, END_HEADERS | end, sid, block)
    parts = [frame(HEADERS, end, sid, block[:max_frame])]
    for at in range(max_frame, len(block), max_frame):
        last = at + max_frame >= len(block)
        piece = block[at : at + max_frame]
        parts.append(frame(CONTINUATION, END_HEADERS if last else 0, sid, piece))
    return b"".join(parts)


def unpad(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without padding (RFC 9113 section 6.1)."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padded frame without a pad length")
    pad = payload[0]
    if pad >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - pad]
