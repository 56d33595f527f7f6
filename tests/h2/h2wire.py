"""A client made of raw frames, for a server connection without a socket.

What the server sends is decoded with the ``hpack`` library, not with our own decoder, and told in
one line a frame, so that a story is a list of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import hpack

from kvorum.h2 import frames
from kvorum.h2.call import Call
from kvorum.h2.deadlines import Deadlines
from kvorum.h2.http import Answer, HttpRequest
from kvorum.h2.limits import Limits
from kvorum.h2.method import Method
from kvorum.h2.server_core import ServerConnection
from kvorum.h2.service import Service

GREETING = 3  # frames that every server connection begins with: SETTINGS, WINDOW_UPDATE, the ACK

HEAD = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.S/Now"),
    (":authority", "here:1"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


def grpc(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


@dataclass
class Frame:
    kind: int
    flags: int
    sid: int
    payload: bytes
    fields: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        words = [frames.FRAME_NAMES[self.kind], str(self.sid)]
        if self.kind in (frames.DATA, frames.HEADERS) and self.flags & frames.END_STREAM:
            words.append("END")
        if self.kind in (frames.SETTINGS, frames.PING) and self.flags & frames.ACK:
            words.append("ACK")
        words += _DETAILS.get(self.kind, _no_details)(self)
        return " ".join(words)


def _no_details(one: Frame) -> list[str]:
    return [one.payload.hex()] if one.payload else []


def _data(one: Frame) -> list[str]:
    text = one.payload
    return [repr(text)[1:] if len(text) < 40 else f"{len(text)} bytes"]


def _headers(one: Frame) -> list[str]:
    return [f"{name}={value}" for name, value in one.fields]


def _settings(one: Frame) -> list[str]:
    pairs = frames.parse_settings(one.payload)
    return [f"{frames.Setting(key).name}={value}" for key, value in pairs]


def _rst(one: Frame) -> list[str]:
    return [frames.ErrorCode(int.from_bytes(one.payload, "big")).name]


def _goaway(one: Frame) -> list[str]:
    last, code = one.payload[:4], one.payload[4:8]
    name = frames.ErrorCode(int.from_bytes(code, "big")).name
    return [f"last={int.from_bytes(last, 'big')}", name, *one.payload[8:].decode().split()]


def _update(one: Frame) -> list[str]:
    return [f"+{int.from_bytes(one.payload, 'big')}"]


_DETAILS: dict[int, Callable[[Frame], list[str]]] = {
    frames.DATA: _data,
    frames.HEADERS: _headers,
    frames.SETTINGS: _settings,
    frames.RST_STREAM: _rst,
    frames.GOAWAY: _goaway,
    frames.WINDOW_UPDATE: _update,
}


class Reader:
    """Cuts a byte stream into frames, and decodes heads."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder()
        self._rest = b""

    def read(self, data: bytes) -> list[Frame]:
        data = self._rest + data
        found = []
        while len(data) >= 9:
            word, flags, sid = frames.FRAME_HEAD.unpack_from(data)
            size = word >> 8
            if len(data) < 9 + size:
                break
            found.append(Frame(word & 0xFF, flags, sid, data[9 : 9 + size]))
            data = data[9 + size :]
        self._rest = data
        return self._with_fields(found)

    def _with_fields(self, found: list[Frame]) -> list[Frame]:
        """Heads get their fields, and lose the frames that merely continue them."""
        merged: list[Frame] = []
        for one in found:
            if one.kind == frames.CONTINUATION:
                merged[-1].payload += one.payload
            else:
                merged.append(one)
        for one in merged:
            if one.kind == frames.HEADERS:
                decoded = self._decoder.decode(one.payload)
                one.fields = [(str(name), str(value)) for name, value in decoded]
        return merged


class Wire:
    """A server connection and the peer that torments it. ``now`` is its clock."""

    def __init__(
        self,
        methods: dict[str, Method] | None = None,
        limits: Limits | None = None,
        *,
        http: Callable[[Answer, HttpRequest], None] | None = None,
        greet: bool = True,
    ) -> None:
        self.now = 100.0
        self.calls: list[Call] = []
        self.seen: list[str] = []
        self.woken = 0
        self.reports: list[BaseException] = []
        self.armed: list[float] = []
        self.deadlines = Deadlines(self.armed.append)
        service = Service(
            methods if methods is not None else self.usual_methods(),
            self.deadlines,
            http=http,
            report=self.reports.append,
        )
        self.limits = limits or Limits()
        self.conn = ServerConnection(service, self.limits, self._wake, self.now)
        self.encoder = hpack.Encoder()
        self.reader = Reader()
        if greet:
            assert len(self.send(frames.PREFACE + frames.settings({}))) == GREETING

    def _wake(self) -> None:
        self.woken += 1

    def usual_methods(self) -> dict[str, Method]:
        """Now echoes, Hold keeps its calls in ``calls``, Stream tells what happens in ``seen``."""
        return {
            "/t.S/Now": Method(lambda call, message: call.reply(message)),
            "/t.S/Hold": Method(lambda call, message: self.calls.append(call)),
            "/t.S/Stream": Method(self._stream, streaming=True),
        }

    def _stream(self, call: Call) -> None:
        seen = self.seen.append
        self.calls.append(call)
        call.on_message = lambda message: seen(
            f"message {message!r}" if len(message) < 40 else f"message of {len(message)}"
        )
        call.on_end = lambda: seen("end")
        call.on_cancel = lambda: seen("cancel")
        call.on_writable = lambda: seen("writable")

    # What goes there.

    def block(
        self, path: str = "/t.S/Now", *more: tuple[str, str], head: Iterable[tuple[str, str]] = HEAD
    ) -> bytes:
        fields = [(name, path if name == ":path" else value) for name, value in head]
        return self.encoder.encode([*fields, *more])

    def head(
        self, sid: int, path: str = "/t.S/Now", *more: tuple[str, str], end: bool = False
    ) -> bytes:
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        return frames.frame(frames.HEADERS, flags, sid, self.block(path, *more))

    def data(self, sid: int, data: bytes, *, end: bool = False) -> bytes:
        return frames.frame(frames.DATA, frames.END_STREAM if end else 0, sid, data)

    def request(self, sid: int, message: bytes = b"hello", path: str = "/t.S/Now") -> bytes:
        return self.head(sid, path) + self.data(sid, grpc(message), end=True)

    # What comes back.

    def send(self, data: bytes) -> list[str]:
        """Give the server these bytes; what it sends, a line for each frame."""
        self.conn.receive(data, self.now)
        return self.flush()

    def flush(self) -> list[str]:
        return [str(one) for one in self.frames()]

    def frames(self) -> list[Frame]:
        return self.reader.read(self.conn.take())

    def raw(self, kind: int, flags: int = 0, sid: int = 0, payload: bytes = b"") -> list[str]:
        return self.send(frames.frame(kind, flags, sid, payload))

    def tick(self, seconds: float) -> list[str]:
        """Let time pass."""
        self.now += seconds
        for call in self.deadlines.expire(self.now):
            call.expire()
        if self.conn.next_check <= self.now:
            self.conn.tick(self.now)
        return self.flush()


OK_HEAD = "HEADERS {} :status=200 content-type=application/grpc"
OK_TAIL = "HEADERS {} END grpc-status=0"


def answer(sid: int, message: bytes) -> list[str]:
    """The lines of a unary call that went well."""
    body = grpc(message)
    text = repr(body)[1:] if len(body) < 40 else f"{len(body)} bytes"
    return [OK_HEAD.format(sid), f"DATA {sid} {text}", OK_TAIL.format(sid)]


def failure(sid: int, code: int, message: str, *extra: str, http: int = 200) -> str:
    """The line of a trailers-only answer."""
    words = [f"HEADERS {sid} END :status={http} content-type=application/grpc"]
    words += [f"grpc-status={code}", f"grpc-message={message}", *extra]
    return " ".join(words)
