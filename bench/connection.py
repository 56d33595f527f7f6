"""The client half of one HTTP/2 connection, without I/O: bytes in, finished streams out.

Made to be cheap rather than general: a reply costs a struct read and a dictionary look-up per
frame. Every header block is still judged: blocks whose meaning is known are found by their bytes,
all others go through an HPACK decoder, and what is known is forgotten when a block changes the
decoder's dynamic table, on which the meaning of the bytes depends.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Protocol

import hpack

from bench import frames
from bench.frames import DATA, END_HEADERS, END_STREAM, HEADERS, MAX_WINDOW

RECEIVE_WINDOW: Final = 16 * 2**20
"""Credit per stream: a unary reply below this needs no window update."""

INITIAL_REPLY: Final = -1
"""A header block that opens a good reply: status 200, gRPC, no grpc-status yet."""

NO_STATUS: Final = -2

KNOWN_BLOCKS: Final = 256
"""Bound of the remembered header blocks; a server uses a handful."""

CANCELLED: Final = 1
UNKNOWN: Final = 2
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_unpack = frames.HEAD.unpack_from


class ProtocolError(Exception):
    """The peer sent what HTTP/2 or gRPC forbids; the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A stream that ended otherwise than with grpc-status 0."""

    stream: int
    code: int
    message: str


class Sink(Protocol):
    """Takes the DATA payloads of one stream."""

    def data(self, payload: bytes) -> None: ...


class Body:
    """A sink that keeps a reply's messages."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def data(self, payload: bytes) -> None:
        self._chunks.append(payload)

    def messages(self) -> list[bytes]:
        """The messages received; raises ValueError when bytes of an unfinished one are left."""
        messages, rest = frames.split_messages(b"".join(self._chunks))
        if rest:
            raise ValueError(f"{len(rest)} bytes after the last whole message")
        return messages

    def whole(self) -> list[bytes]:
        """The messages received so far, without an unfinished one at the end."""
        return frames.split_messages(b"".join(self._chunks))[0]


class _Upload:
    """A request body that waits for flow-control credit."""

    __slots__ = ("credit", "end", "rest")

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.rest = b""
        self.end = False


class Connection:
    """One connection. The owner sends ``take()`` to the peer and feeds what the peer sent.

    ``window`` is the peer's credit for the connection: whoever appends requests to ``out`` without
    ``start`` subtracts their DATA bytes himself and keeps it above zero. ``failures`` grows
    until the owner empties it. Streams in ``sinks`` have their payloads passed on.
    """

    __slots__ = (
        "_blocks",
        "_continued",
        "_decoder",
        "_stream_credit",
        "_tail",
        "_unacknowledged",
        "_uploads",
        "failures",
        "goaway",
        "max_streams",
        "next_id",
        "out",
        "peer_stream_window",
        "received",
        "sinks",
        "window",
    )

    def __init__(self) -> None:
        wanted = {
            frames.SETTINGS_ENABLE_PUSH: 0,
            frames.SETTINGS_INITIAL_WINDOW_SIZE: RECEIVE_WINDOW,
        }
        raised = MAX_WINDOW - frames.DEFAULT_WINDOW
        self.out = [frames.PREFACE, frames.settings(wanted), frames.window_update(0, raised)]
        self.next_id = 1
        self.window = frames.DEFAULT_WINDOW
        self.peer_stream_window = frames.DEFAULT_WINDOW
        self.max_streams = MAX_WINDOW
        self.received = 0
        self.failures: list[Failure] = []
        self.goaway: str | None = None
        self.sinks: dict[int, Sink] = {}
        self._tail = b""
        self._unacknowledged = 0
        self._stream_credit: dict[int, int] = {}
        self._uploads: dict[int, _Upload] = {}
        self._continued: tuple[int, int, bytes] | None = None
        self._decoder = hpack.Decoder()
        self._blocks: dict[bytes, int] = {}

    def take(self) -> bytes:
        """The bytes to send, which are forgotten here."""
        data = b"".join(self.out)
        self.out.clear()
        return data

    # Sending

    def start(self, block: bytes, sink: Sink | None = None) -> int:
        """Open a stream; its messages follow with ``write``. Returns the stream id."""
        stream = self.next_id
        self.next_id += 2
        self.out.append(frames.frame(HEADERS, END_HEADERS, stream, block))
        self._uploads[stream] = _Upload(self.peer_stream_window)
        if sink is not None:
            self.sinks[stream] = sink
        return stream

    def write(self, stream: int, message: bytes, *, end: bool = False) -> None:
        """Send one message, now or as the peer's flow control allows."""
        upload = self._uploads[stream]
        upload.rest += frames.envelope(message)
        upload.end = end
        self._pump(stream, upload)

    def append(self, stream: int, data: bytes) -> bool:
        """Send one ready DATA frame of a stream if credit allows; returns whether it did."""
        upload = self._uploads[stream]
        size = len(data) - frames.HEAD.size
        if upload.rest or size > upload.credit or size > self.window:
            return False
        upload.credit -= size
        self.window -= size
        self.out.append(data)
        return True

    def finish(self, stream: int) -> None:
        """End the request side of a stream after what was written."""
        upload = self._uploads[stream]
        upload.end = True
        self._pump(stream, upload)

    def request(self, block: bytes, message: bytes, sink: Sink | None = None) -> int:
        """A whole unary request of any size. Returns the stream id."""
        stream = self.start(block, sink)
        self.write(stream, message, end=True)
        return stream

    def cancel(self, stream: int) -> None:
        """Reset a stream; nothing more is reported of it."""
        self.forget(stream)
        code = struct.pack(">I", 8)
        self.out.append(frames.frame(frames.RST_STREAM, 0, stream, code))

    def forget(self, stream: int) -> None:
        """Drop what is kept of a stream."""
        self.sinks.pop(stream, None)
        self._uploads.pop(stream, None)
        self._stream_credit.pop(stream, None)

    def unsent(self, stream: int) -> int:
        """Bytes of the stream's request that wait for credit."""
        upload = self._uploads.get(stream)
        return 0 if upload is None else len(upload.rest)

    def _pump(self, stream: int, upload: _Upload) -> None:
        size = max(0, min(len(upload.rest), upload.credit, self.window))
        ended = upload.end and size == len(upload.rest)
        if size or ended:
            payload = upload.rest[:size]
            self.out.append(frames.data_frames(stream, payload, end=ended))
            upload.rest = upload.rest[size:]
            upload.credit -= size
            self.window -= size
        if ended:
            del self._uploads[stream]

    # Receiving

    def feed(self, data: bytes) -> list[int]:
        """Take bytes from the peer; returns the streams that ended with grpc-status 0.

        Raises ProtocolError on bytes that are no HTTP/2 for a client.
        """
        if self._tail:
            data = self._tail + data
        end = len(data)
        position = payload = 0
        done: list[int] = []
        blocks = self._blocks
        sinks = self.sinks
        while end - position >= 9:
            head, flags, stream = _unpack(data, position)
            after = position + 9 + (head >> 8)
            if after > end:
                break
            kind = head & 255
            if kind == HEADERS:
                # Flags 4 and 5 alone: a whole block without padding or priority.
                block = data[position + 9 : after]
                code = blocks.get(block, NO_STATUS) if flags & ~1 == END_HEADERS else NO_STATUS
                if code == 0 and flags & END_STREAM:
                    done.append(stream)
                elif code != INITIAL_REPLY or flags & END_STREAM:
                    self._headers(stream, flags, block, done)
            elif kind == DATA:
                payload += head >> 8
                if flags or stream in sinks:
                    self._data(stream, flags, data[position + 9 : after])
            else:
                self._control(kind, flags, stream, data[position + 9 : after], done)
            position = after
        self._tail = data[position:]
        if payload:
            self._credit(payload)
        if done and (sinks or self._uploads):
            self._ended(done)
        return done

    def _credit(self, payload: int) -> None:
        """Give the connection's window back when half of it is used."""
        self.received += payload
        self._unacknowledged += payload
        if self._unacknowledged > MAX_WINDOW // 2:
            self.out.append(frames.window_update(0, self._unacknowledged))
            self._unacknowledged = 0

    def _ended(self, done: list[int]) -> None:
        for stream in done:
            self._uploads.pop(stream, None)
            self._stream_credit.pop(stream, None)

    def _data(self, stream: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        if flags & frames.PADDED:
            payload = payload[1 : size - payload[0]]
        sink = self.sinks.get(stream)
        if sink is not None:
            sink.data(payload)
            used = self._stream_credit.get(stream, 0) + size
            if used > RECEIVE_WINDOW // 2:
                self.out.append(frames.window_update(stream, used))
                used = 0
            self._stream_credit[stream] = used
        if flags & END_STREAM:
            self._fail(stream, INTERNAL, "the reply ended without trailers")

    def _fail(self, stream: int, code: int, message: str) -> None:
        self.failures.append(Failure(stream, code, message))
        self.forget(stream)

    def _headers(self, stream: int, flags: int, block: bytes, done: list[int]) -> None:
        if flags & frames.PADDED:
            block = block[1 : len(block) - block[0]]
        if flags & frames.PRIORITIZED:
            block = block[5:]
        if not flags & END_HEADERS:
            self._continued = (stream, flags, block)
            return
        meaning, message = self._decode(block)
        if flags & END_STREAM:
            if meaning == 0:
                done.append(stream)
            else:
                code = INTERNAL if meaning in (INITIAL_REPLY, NO_STATUS) else meaning
                self._fail(stream, code, message or "trailers without grpc-status")
        elif meaning != INITIAL_REPLY:
            self._fail(stream, INTERNAL, message or "a reply that does not begin as gRPC's")

    def _decode(self, block: bytes) -> tuple[int, str]:
        """What a block says, which is remembered as long as the dynamic table stays as it is."""
        table = self._decoder.header_table
        before = (list(table.dynamic_entries), table.maxsize)
        try:
            fields = {str(name): str(value) for name, value in self._decoder.decode(block)}
        except hpack.HPACKError as error:
            raise ProtocolError(f"a header block that cannot be decoded: {error}") from error
        changed = before != (list(table.dynamic_entries), table.maxsize)
        if changed or len(self._blocks) >= KNOWN_BLOCKS:
            self._blocks.clear()
        meaning, message = judge(fields)
        if meaning in (0, INITIAL_REPLY) and not changed:
            self._blocks[block] = meaning
        return meaning, message

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, done: list[int]) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._add_credit(stream, int.from_bytes(payload, "big") & MAX_WINDOW)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._settings(payload)
        elif kind == frames.RST_STREAM:
            reason = int.from_bytes(payload, "big")
            self._fail(stream, UNKNOWN, f"stream reset by the server, HTTP/2 error {reason}")
        elif kind == frames.GOAWAY:
            code = int.from_bytes(payload[4:8], "big")
            self.goaway = f"GOAWAY, HTTP/2 error {code} {payload[8:]!r}"
        elif kind == frames.CONTINUATION:
            self._continuation(stream, flags, payload, done)
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolError("PUSH_PROMISE, though push is switched off")

    def _continuation(self, stream: int, flags: int, payload: bytes, done: list[int]) -> None:
        if self._continued is None or self._continued[0] != stream:
            raise ProtocolError(f"CONTINUATION on stream {stream} without HEADERS")
        _, first, block = self._continued
        self._continued = (stream, first, block + payload)
        if flags & END_HEADERS:
            self._continued = None
            plain = first & END_STREAM | END_HEADERS
            self._headers(stream, plain, block + payload, done)

    def _settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                change = value - self.peer_stream_window
                self.peer_stream_window = value
                for upload in self._uploads.values():
                    upload.credit += change
            elif name == frames.SETTINGS_MAX_CONCURRENT_STREAMS:
                self.max_streams = value
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._pump_all()

    def _add_credit(self, stream: int, credit: int) -> None:
        if stream == 0:
            self.window += credit
            self._pump_all()
        elif (upload := self._uploads.get(stream)) is not None:
            upload.credit += credit
            self._pump(stream, upload)

    def _pump_all(self) -> None:
        for stream, upload in list(self._uploads.items()):
            if upload.rest:
                self._pump(stream, upload)


def judge(fields: dict[str, str]) -> tuple[int, str]:
    """A decoded block's meaning: a gRPC code, INITIAL_REPLY or NO_STATUS; and what went wrong."""
    status = fields.get(":status")
    if status not in (None, "200"):
        return NO_STATUS, f"HTTP status {status}"
    code = fields.get("grpc-status")
    if code is not None:
        if not code.isdigit():
            return NO_STATUS, f"grpc-status {code!r}"
        if status is not None and code == "0":
            return NO_STATUS, "grpc-status 0 without a reply"
        return int(code), fields.get("grpc-message", "")
    if status is None:
        return NO_STATUS, "trailers without grpc-status"
    content = fields.get("content-type", "")
    if not content.startswith("application/grpc"):
        return NO_STATUS, f"content-type {content!r}"
    return INITIAL_REPLY, ""
