"""The client's end of a connection, and of one RPC, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from kvorum.errors import Code
from kvorum.h2 import frames
from kvorum.h2.connection import Endpoint
from kvorum.h2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_STREAM,
    MAX_STREAM_ID,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    Setting,
    StreamFault,
    frame,
)
from kvorum.h2.heads import check_fields
from kvorum.h2.hpack import Field, encode
from kvorum.h2.limits import Limits
from kvorum.h2.message import Inbox, frame_message
from kvorum.h2.rules import State
from kvorum.h2.status import (
    RpcError,
    decode_binary,
    decode_message,
    encode_metadata,
    encode_timeout,
    is_grpc,
)
from kvorum.h2.stream import Stream

Metadata = list[tuple[str, str]]

_KEEPALIVE_PING: Final = b"kvorum\0c"
_RESPONSE_PSEUDO: Final = frozenset((b":status",))

# gRPC over HTTP2: "HTTP2 errors" and "HTTP status to gRPC status", as grpc-go has them.
_RESET_CODES: Final = {
    ErrorCode.FLOW_CONTROL_ERROR: Code.RESOURCE_EXHAUSTED,
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}
_HTTP_CODES: Final = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}


class ResponseHead:
    """A response head or trailers: HTTP status (0 in trailers), gRPC status (None if absent)."""

    __slots__ = ("_fields", "code", "gzip", "http", "is_grpc", "message")

    def __init__(self, sid: int, fields: list[Field]) -> None:
        pseudo = check_fields(sid, fields, _RESPONSE_PSEUDO)
        status = pseudo.get(b":status", b"0")
        if not status.isdigit() or len(status) > 3:
            raise StreamFault(sid, ErrorCode.PROTOCOL_ERROR, "malformed :status")
        named = dict(fields)
        self._fields = fields
        self.http = int(status)
        self.is_grpc = is_grpc(named.get(b"content-type", b""))
        self.gzip = named.get(b"grpc-encoding") == b"gzip"
        text = named.get(b"grpc-status")
        self.code: int | None = None
        if text is not None:
            known = text.isdigit() and len(text) < 10
            self.code = int(text) if known else int(Code.UNKNOWN)
        self.message = decode_message(named.get(b"grpc-message", b""))

    @property
    def metadata(self) -> Metadata:
        """What the server said beyond the protocol's fields; -bin values as latin-1 characters."""
        found: Metadata = []
        for name, value in self._fields:
            if name[:1] == b":" or name in (b"grpc-status", b"grpc-message", b"content-type"):
                continue
            if name.endswith(b"-bin"):
                try:
                    value = decode_binary(value)
                except ValueError:
                    continue
            found.append((name.decode("ascii"), value.decode("latin-1")))
        return found


class ClientCall(Stream):
    """One RPC. Callbacks: ``on_message(bytes)``, ``on_head(metadata)``, and last, exactly once,
    ``on_done(code, message, trailers)``. ``unprocessed`` tells, once done, that the server has
    certainly not acted on it, so that it may be tried again."""

    __slots__ = (
        "_client",
        "_done",
        "_ending",
        "_inbox",
        "_local_end",
        "_paused",
        "_uncredited",
        "deadline",
        "on_done",
        "on_head",
        "on_message",
        "on_writable",
        "slot",
        "unprocessed",
    )

    def __init__(
        self,
        conn: ClientConnection,
        sid: int,
        on_message: Callable[[bytes], None],
        on_done: Callable[[int, str, Metadata], None],
    ) -> None:
        super().__init__(conn, sid, peer_done=False)
        self._client = conn
        self.on_message = on_message
        self.on_done = on_done
        self.on_head: Callable[[Metadata], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.deadline: float | None = None
        self.slot: set[Any] | None = None
        self.unprocessed = False
        self._done = False
        self._local_end = False
        self._paused = False
        self._uncredited = 0
        self._ending: tuple[int, str, ResponseHead | None] | None = None
        self._inbox: Inbox | None = None

    @property
    def done(self) -> bool:
        return self._done

    # --- sending --------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        if not self._done and not self._local_end:
            self.write_message(message)

    def end(self) -> None:
        """Half-close: nothing more will be sent."""
        if self._done or self._local_end:
            return
        self._local_end = True
        tail = frame(DATA, END_STREAM, self.sid, b"")
        if self.backlog:
            self._tail = tail
        else:
            self.conn.send(tail)

    def send_only(self, message: bytes) -> None:
        """The one message of the call, and its end in the same frame where the windows permit."""
        conn = self.conn
        framed = len(message) + 5
        if framed <= min(conn.room, conn.peer_window, conn.peer_frame):
            self._local_end = True
            conn.room -= framed
            self.delta -= framed
            conn.send(frame(DATA, END_STREAM, self.sid, frame_message(message)))
        else:
            self.send(message)
            self.end()

    def _close(self, tail: bytes) -> None:
        """Our side is all sent; unlike a server's, that does not end the stream."""
        self._tail = None
        self.conn.send(tail)

    def cancel(self, code: int = Code.CANCELLED, message: str = "context canceled") -> None:
        """Give up: the server gets RST_STREAM, ``on_done`` this status."""
        if self._done:
            return
        self._finish(code, message, [])
        self.conn.reset_stream(self.sid, ErrorCode.CANCEL)

    def expire(self) -> None:
        self.cancel(Code.DEADLINE_EXCEEDED, "context deadline exceeded")

    def drained(self) -> None:
        if self.on_writable is not None and not self._done:
            self.on_writable()

    # --- receiving ------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self.credit(self._uncredited)
            self._uncredited = 0
            self._deliver()

    def head(self, head: ResponseHead, end: bool) -> None:
        """A head: the response's, or its trailers."""
        if end:
            self.peer_done = True
            code, message = _http_status(head) if head.code is None else (head.code, head.message)
            self._ending = (code, message, head)
            self._deliver()
        elif self._inbox is not None or head.http == 0:
            raise StreamFault(self.sid, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        elif head.http >= 200:
            if head.http != 200 or not head.is_grpc:
                self.cancel(*_http_status(head))
                return
            self._inbox = Inbox(self.conn.limits.max_receive_message, head.gzip)
            if self.on_head is not None:
                self.on_head(head.metadata)

    def feed(self, data: bytes, end: bool) -> None:
        if self._done:
            return
        inbox = self._inbox
        if inbox is None:
            raise StreamFault(self.sid, ErrorCode.PROTOCOL_ERROR, "DATA before the head")
        inbox.feed(data)
        if self._paused:
            self._uncredited += len(data)
        else:
            self.credit(len(data))
        if end:
            text = "server closed the stream without sending trailers"
            self._ending = (Code.INTERNAL, text, None)
        self._deliver()

    def _deliver(self) -> None:
        """Hand over what is complete; the status after the last message."""
        inbox = self._inbox
        try:
            while inbox is not None and not self._paused and not self._done:
                message = inbox.next()
                if message is None:
                    break
                self.on_message(message)
        except RpcError as error:
            self.cancel(error.code, error.message)
            return
        if self._ending is None or self._done or (self._paused and inbox is not None):
            return
        code, message_text, last = self._ending
        if code == 0 and inbox is not None and inbox.held:
            code, message_text = Code.INTERNAL, "unexpected EOF"
        self._over(code, message_text, last.metadata if last is not None else [])

    def _over(self, code: int, message: str, trailers: Metadata) -> None:
        """The server has ended the call; what we have not sent yet is not wanted any more."""
        self._finish(code, message, trailers)
        conn = self._client
        if self._local_end and not self.backlog:
            conn.forget(self)
        elif self.sid in conn.streams:
            conn.reset_stream(self.sid, ErrorCode.NO_ERROR)

    def reset(self, code: int) -> None:
        if self._done:
            return
        if code == ErrorCode.REFUSED_STREAM:
            self.unprocessed = True
        name = ErrorCode(code).name if code in _KNOWN_RESETS else str(code)
        status = _RESET_CODES.get(code, Code.INTERNAL)  # type: ignore[call-overload]
        text = f"stream terminated by RST_STREAM with error code: {name}"
        self._finish(status, text, [])

    def lose(self, message: str, *, unprocessed: bool) -> None:
        """The connection is gone, or will not take the call."""
        if not self._done:
            self.unprocessed = unprocessed
            self._finish(Code.UNAVAILABLE, message, [])

    def _finish(self, code: int, message: str, trailers: Metadata) -> None:
        self._done = True
        self._inbox = None
        if self.slot is not None:
            self.slot.discard(self)
        self.on_done(code, message, trailers)


_KNOWN_RESETS: Final = frozenset(int(code) for code in ErrorCode)


def _http_status(head: ResponseHead) -> tuple[int, str]:
    """The status of an answer that is not gRPC's."""
    if head.http in (0, 200):
        return Code.UNKNOWN, "the answer has no grpc-status"
    code = _HTTP_CODES.get(head.http, Code.UNKNOWN)
    return code, f"unexpected HTTP status code received from server: {head.http}"


class Owner(Protocol):
    """Who opens calls on the connection learns of its state."""

    def settled(self) -> None:
        """Calls may be started now."""

    def vacant(self) -> None:
        """A call has ended, so that there may be room for one more."""

    def changed(self) -> None:
        """No more calls may be started."""

    def lost(self, core: ClientConnection) -> None:
        """The connection has ended."""


class ClientConnection(Endpoint):
    """Opens calls."""

    def __init__(self, limits: Limits, wake: Callable[[], None], now: float, owner: Owner) -> None:
        super().__init__(limits, wake, now)
        self.usable = True
        self._owner = owner
        self._next_sid = 1
        self._ping_at = -1.0
        self._since = now
        values = {
            Setting.ENABLE_PUSH: 0,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            Setting.MAX_FRAME_SIZE: limits.max_frame_size,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list,
        }
        extra = limits.connection_window - DEFAULT_WINDOW
        self.out.append(PREFACE + frames.settings(values) + frames.window_update(0, extra))
        self.set_check(now + limits.handshake_timeout)

    @property
    def full(self) -> bool:
        """As many calls are open as the server allows."""
        return len(self.streams) >= self.peer_max_streams

    def start(
        self,
        block: bytes,
        on_message: Callable[[bytes], None],
        on_done: Callable[[int, str, Metadata], None],
    ) -> ClientCall:
        """Open a call with this head; it must be ``usable`` and not ``full``."""
        sid = self._next_sid
        self._next_sid += 2
        self.last_sid = sid
        call = ClientCall(self, sid, on_message, on_done)
        self.streams[sid] = call
        self.send(frames.headers(sid, block, end_stream=False, max_frame=self.peer_frame))
        if self._next_sid > MAX_STREAM_ID:
            self.retire()
        return call

    def retire(self) -> None:
        """Take no more calls; close when those under way are done."""
        self.usable = False
        self.went_away = True
        self._owner.changed()
        if self.quiet:
            self.wake()

    # --- what the endpoint asks -----------------------------------------------------------------

    def last_peer_sid(self) -> int:
        return 0

    def state(self, sid: int) -> State:
        stream = self.streams.get(sid)
        if stream is not None:
            return State.ENDED if stream.peer_done else State.OPEN
        if sid > self.last_sid or not sid & 1:
            return State.IDLE
        return State.LINGERING if self.lingers(sid) else State.CLOSED

    def on_head(self, sid: int, block: bytes, end: bool) -> None:
        fields = self.decode(block)
        stream = self.streams.get(sid)
        if stream is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "5.1: a head on an idle stream")
        if fields is None:
            raise StreamFault(sid, ErrorCode.FRAME_SIZE_ERROR, "head too large")
        assert isinstance(stream, ClientCall)
        stream.head(ResponseHead(sid, fields), end)

    def on_settled(self) -> None:
        self.set_check(self.now)
        self._owner.settled()

    def on_goaway(self, last_sid: int, code: int, debug: bytes) -> None:
        text = f"the server went away (code {code}): {debug[:256].decode('utf-8', 'replace')}"
        refused = [s for sid, s in self.streams.items() if sid > last_sid]
        self.retire()
        for stream in refused:
            assert isinstance(stream, ClientCall)
            self.forget(stream)
            stream.drop_backlog()
            stream.lose(text, unprocessed=True)

    def forget(self, stream: Stream) -> None:
        super().forget(stream)
        self._owner.vacant()
        if self.went_away and self.quiet:
            self.wake()

    def lost(self) -> None:
        """As in general; calls end with UNAVAILABLE."""
        self.usable = False
        text = str(self.fault) if self.fault is not None else "error reading from server: EOF"
        for stream in list(self.streams.values()):
            assert isinstance(stream, ClientCall)
            stream.lose(text, unprocessed=False)
        was_closed = self.closed
        super().lost()
        if not was_closed:
            self._owner.lost(self)

    def tick(self, now: float) -> None:
        """Client keepalive: only while calls are open, as servers punish other pings."""
        super().tick(now)
        limits = self.limits
        if self.closed:
            return
        if not self.settled:
            self._watch(self._since + limits.handshake_timeout, "no SETTINGS from the server")
        elif self._ping_at > self.last_read:
            self._watch(self._ping_at + limits.keepalive_timeout, "keepalive ping not answered")
        elif limits.keepalive_interval:
            self._keepalive(now)

    def _keepalive(self, now: float) -> None:
        limits = self.limits
        due = self.last_read + limits.keepalive_interval
        if due > now:
            self.set_check(due)
        elif self.streams or limits.permit_without_stream:
            self._ping_at = now
            self.send(frames.ping(_KEEPALIVE_PING))
            self.set_check(now + min(limits.keepalive_timeout, limits.keepalive_interval))
        else:
            self.set_check(now + limits.keepalive_interval)

    def _watch(self, due: float, what: str) -> None:
        if due <= self.now:
            self.terminate(ConnectionFault(ErrorCode.SETTINGS_TIMEOUT, what))
        else:
            self.set_check(due)


def request_block(
    path: str,
    authority: str,
    *,
    scheme: str,
    user_agent: str,
    metadata: Iterable[tuple[str, str | bytes]],
) -> bytes:
    """The head of a request, without its timeout; it can be used again."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"content-type", b"application/grpc"),
        (b"user-agent", user_agent.encode()),
        (b"te", b"trailers"),
        (b"grpc-accept-encoding", b"gzip"),
    ]
    fields += [encode_metadata(name, value) for name, value in metadata]
    return encode(fields)


def timeout_block(seconds: float) -> bytes:
    """What to append to a request head for a deadline."""
    return encode([(b"grpc-timeout", encode_timeout(seconds))])
