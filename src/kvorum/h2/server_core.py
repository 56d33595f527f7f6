"""The server's end of a connection, without I/O."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from kvorum.errors import Code, EtcdError
from kvorum.h2 import frames
from kvorum.h2.call import Call
from kvorum.h2.connection import Endpoint
from kvorum.h2.exchange import Exchange
from kvorum.h2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD,
    HEADERS,
    MAX_STREAM_ID,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    Setting,
    StreamFault,
)
from kvorum.h2.heads import RequestHead, check_trailers
from kvorum.h2.hpack import Field
from kvorum.h2.http import Certificate, HttpRequest
from kvorum.h2.limits import IDLE_PING_INTERVAL, MAX_PING_STRIKES, STREAM_CEILING, Limits
from kvorum.h2.method import Method
from kvorum.h2.rules import State
from kvorum.h2.service import Service
from kvorum.h2.stream import Stream

_unpack: Final = FRAME_HEAD.unpack_from
_unpack_prefix: Final = Struct(">BI").unpack_from  # of a gRPC message: flag, length
_KEEPALIVE_PING: Final = b"kvorum\0k"
_DRAIN_PING: Final = b"kvorum\0d"
_DRAIN_PATIENCE: Final = 5.0  # grpc-go: how long the answer to it may take


_FAULTY: Final = RequestHead((), "")


class ServerConnection(Endpoint):
    """Accepts calls. The first bytes given to it are the client's preface."""

    def __init__(
        self,
        service: Service,
        limits: Limits,
        wake: Callable[[], None],
        now: float,
        *,
        peer: str = "",
        secure: bool = False,
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(limits, wake, now)
        self.service = service
        self.peer = peer
        self.secure = secure
        self.certificate = certificate
        self.max_streams = min(limits.max_concurrent_streams or STREAM_CEILING, STREAM_CEILING)
        self.accepting = True
        self._heads: dict[bytes, RequestHead] = {}
        self._preface_left = PREFACE
        # Off until SETTINGS have come; also for tests, to compare the two paths.
        self.short = False
        self._max_size = min(limits.max_receive_message + 5, limits.max_frame_size)
        self._strikes = 0
        self._last_ping = -IDLE_PING_INTERVAL
        self._sent_mark = 0
        self.answers = 0
        self._draining = False
        self._go_away_at = 0.0
        self._ping_at = -1.0
        self._since = now
        self.set_check(now + limits.handshake_timeout)
        self.out.append(self._greeting())

    def _greeting(self) -> bytes:
        limits = self.limits
        values = {
            Setting.MAX_FRAME_SIZE: limits.max_frame_size,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list,
        }
        if self.max_streams < STREAM_CEILING:
            values[Setting.MAX_CONCURRENT_STREAMS] = self.max_streams
        extra = limits.connection_window - DEFAULT_WINDOW
        return frames.settings(values) + frames.window_update(0, extra)

    # --- frames ---------------------------------------------------------------------------------

    def _frames(self, data: bytes) -> int:
        if self._preface_left:
            return self._check_preface(data)
        pos = 0
        end = len(data)
        # All of this read fits the connection's window, or the short path is off (section 6.9.1).
        fast_end = end if self.short and self.recv_left >= end and not self._assembly.sid else 0
        heads = self._heads
        streams = self.streams
        max_size = self._max_size
        room = self.max_streams
        while end - pos >= 9:
            word, flags, sid = _unpack(data, pos)
            body = pos + 9
            size = word >> 8
            stop = body + size
            # The short path: a head that opens a unary call, and one frame with the whole message
            # that ends the request. Whatever is not exactly so is left to the general path.
            if stop <= fast_end:
                kind = word & 0xFF
                if (
                    kind == HEADERS
                    and flags == END_HEADERS
                    and sid & 1
                    and self.last_sid < sid <= MAX_STREAM_ID
                    and len(streams) < room
                    and self.accepting
                ):
                    head = heads.get(data[body:stop]) or self._learn_now(sid, data[body:stop])
                    method = head.fast
                    pos = stop
                    if method is None:
                        self._open_slow(sid, head)
                        continue
                    self.last_sid = sid
                    method.started += 1
                    streams[sid] = call = Call(self, sid, head, method)
                    if head.timeout is not None:
                        self.service.deadlines.add(call, self.now, head.timeout)
                    continue
                if kind == DATA and flags == END_STREAM and 5 <= size <= max_size:
                    stream = streams.get(sid)
                    if (
                        stream is not None
                        and (waiting := stream.waiting) is not None
                        and _unpack_prefix(data, body) == (0, size - 5)
                        and (stream.expected is None or stream.expected == size)
                    ):
                        self.recv_left -= size
                        stream.waiting = None
                        stream.peer_done = True
                        waiting.received += 1
                        try:
                            waiting.handler(stream, data[body + 5 : stop])
                        except Exception as error:
                            self.handler_failed(stream, error)
                        pos = stop
                        continue
            if self.closed:
                break
            used = self._frame_at(data, pos, end)
            if not used:
                break
            pos = used
            if self._assembly.sid:
                fast_end = 0
        return pos

    def _check_preface(self, data: bytes) -> int:
        size = min(len(data), len(self._preface_left))
        if data[:size] != self._preface_left[:size]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "3.4: not the client preface")
        self._preface_left = self._preface_left[size:]
        return size + self._frames(data[size:]) if not self._preface_left else size

    def last_peer_sid(self) -> int:
        return self.last_sid

    def state(self, sid: int) -> State:
        stream = self.streams.get(sid)
        if stream is not None:
            return State.ENDED if stream.peer_done else State.OPEN
        if sid > self.last_sid or not sid & 1:
            return State.IDLE
        return State.LINGERING if self.lingers(sid) else State.CLOSED

    # --- heads ----------------------------------------------------------------------------------

    def decode(self, block: bytes) -> list[Field] | None:
        before = self.decoder.generation
        fields = super().decode(block)
        if self.decoder.generation != before:
            self._heads.clear()  # the blocks may mean something else now
        return fields

    def on_head(self, sid: int, block: bytes, end: bool) -> None:
        stream = self.streams.get(sid)
        if stream is not None:
            self._trailers(stream, self.decode(block), end)
            return
        head = self._heads.get(block)
        if head is None:
            head = self._learn(sid, block)
        self._accept_sid(sid)
        self._open(sid, head, end)

    def _learn(self, sid: int, block: bytes) -> RequestHead:
        """Decode and check a head, and remember it by its bytes if they will mean it again."""
        before = self.decoder.generation
        fields = self.decode(block)
        if fields is None:
            self._accept_sid(sid)
            raise StreamFault(sid, ErrorCode.FRAME_SIZE_ERROR, "head too large")
        try:
            head = self.service.head(sid, fields)
        except StreamFault:
            self._accept_sid(sid)
            raise
        if self.decoder.generation == before and len(block) <= self.limits.head_cache_block:
            if len(self._heads) >= self.limits.head_cache_entries:
                self._heads.clear()
            self._heads[block] = head
        return head

    def _learn_now(self, sid: int, block: bytes) -> RequestHead:
        """As ``_learn``, for the short path: a fault is dealt with, and gives ``_FAULTY``."""
        limits = self.limits
        if len(block) > min(limits.max_frame_size, limits.max_header_block):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"head of {len(block)} bytes")
        try:
            return self._learn(sid, block)
        except StreamFault as fault:
            self.stream_fault(fault)
            return _FAULTY

    def _open_slow(self, sid: int, head: RequestHead) -> None:
        """The short path has found a head that is not for it."""
        if head is not _FAULTY:
            self._accept_sid(sid)
            self._open(sid, head, False)

    def _accept_sid(self, sid: int) -> None:
        if not sid & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"5.1.1: stream {sid} from a client")
        self.last_sid = sid

    def _trailers(self, stream: Stream, fields: list[Field] | None, end: bool) -> None:
        check_trailers(stream.sid, fields, end)
        stream.check_length(0, True)
        stream.peer_done = True
        stream.feed(b"", True)

    def _open(self, sid: int, head: RequestHead, end: bool) -> None:
        if not self.accepting or len(self.streams) >= self.max_streams:
            self.reset_stream(sid, ErrorCode.REFUSED_STREAM)
        elif head.refusal is not None:
            self._refuse_call(sid, head.refusal.block, end)
        else:
            if end and head.content_length:
                raise StreamFault(sid, ErrorCode.PROTOCOL_ERROR, "8.1.1: not the content-length")
            if head.method is None:
                self._open_exchange(sid, head, end)
            else:
                self._open_call(sid, head, head.method, end)

    def _refuse_call(self, sid: int, block: bytes, end: bool) -> None:
        tail = frames.headers(sid, block, end_stream=True, max_frame=self.peer_frame)
        if not end:
            tail += frames.rst_stream(sid, ErrorCode.NO_ERROR)
            self._linger(sid)
        self.answers += 1
        self.send(tail)

    def _open_exchange(self, sid: int, head: RequestHead, end: bool) -> None:
        exchange = Exchange(self, sid, head)
        self.streams[sid] = exchange
        if end:
            exchange.peer_done = True
            exchange.feed(b"", True)

    def _open_call(self, sid: int, head: RequestHead, method: Method, end: bool) -> None:
        call = Call(self, sid, head, method)
        call.waiting = None if method.streaming or end else method
        call.peer_done = end
        self.streams[sid] = call
        method.started += 1
        if head.timeout is not None:
            self.service.deadlines.add(call, self.now, head.timeout)
        if method.streaming:
            try:
                method.handler(call)
            except Exception as error:
                self.handler_failed(call, error)
        if end:
            call.feed(b"", True)

    # --- handlers -------------------------------------------------------------------------------

    def handler_failed(self, call: Stream, error: Exception) -> None:
        assert isinstance(call, Call)
        if isinstance(error, EtcdError):
            call.fail(error.code, error.message)
            return
        if self.service.report is not None:
            self.service.report(error)
        call.fail(Code.INTERNAL, f"internal error: {type(error).__name__}")

    def run_unary(self, call: Call, message: bytes) -> None:
        try:
            call.method.handler(call, message)
        except Exception as error:
            self.handler_failed(call, error)

    def run_http(self, exchange: Exchange, request: HttpRequest) -> None:
        assert self.service.http is not None
        self.service.http(exchange, request)

    # --- the connection's life ------------------------------------------------------------------

    def on_settled(self) -> None:
        self.set_check(self.now)
        # The short path does not look at a stream's window: one frame must fit it.
        self.short = self.limits.stream_window >= self.limits.max_frame_size

    def on_ping(self) -> None:
        """grpc-go's keepalive enforcement: pings must be rare unless answers flow."""
        sent = self.data_sent + self.answers
        last, self._last_ping = self._last_ping, self.now
        if sent != self._sent_mark:
            self._sent_mark = sent
            self._strikes = 0
            return
        self.count_nuisance("PING frames")
        limits = self.limits
        idle = not self.streams and not limits.permit_without_stream
        if last + (IDLE_PING_INTERVAL if idle else limits.keepalive_min_time) > self.now:
            self._strikes += 1
        if self._strikes > MAX_PING_STRIKES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def lost(self) -> None:
        self.accepting = False
        super().lost()

    def drain(self, now: float) -> None:
        """Ask the peer to go elsewhere. Calls already under way are still accepted until it has
        seen that (RFC 9113 section 6.8: two GOAWAY frames), then ``closed`` follows the last."""
        if self._draining or self.closed:
            return
        self._draining = True
        self.now = now
        if not self.settled:
            self._go_away()
            return
        self.send(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR) + frames.ping(_DRAIN_PING))
        self._go_away_at = self.now + _DRAIN_PATIENCE
        self.set_check(self._go_away_at)

    def on_ping_ack(self, payload: bytes) -> None:
        if payload == _DRAIN_PING and self._draining and not self.went_away:
            self._go_away()

    def _go_away(self) -> None:
        self.accepting = False
        self.went_away = True
        self.send(frames.goaway(self.last_sid, ErrorCode.NO_ERROR))

    def tick(self, now: float) -> None:
        super().tick(now)
        if self.closed:
            return
        limits = self.limits
        if not self.settled:
            self._watch(self._since + limits.handshake_timeout, "no preface and SETTINGS")
            return
        if self._draining and not self.went_away:
            if now >= self._go_away_at:
                self._go_away()
            else:
                self.set_check(self._go_away_at)
        if limits.keepalive_interval:
            self._keepalive(now)

    def _watch(self, due: float, what: str) -> None:
        if due <= self.now:
            self.terminate(ConnectionFault(ErrorCode.SETTINGS_TIMEOUT, what))
        else:
            self.set_check(due)

    def _keepalive(self, now: float) -> None:
        limits = self.limits
        if self._ping_at <= self.last_read:
            due = self.last_read + limits.keepalive_interval
            if due <= now:
                self._ping_at = now
                self.send(frames.ping(_KEEPALIVE_PING))
                due = now + min(limits.keepalive_timeout, limits.keepalive_interval)
            self.set_check(due)
        elif limits.keepalive_timeout:
            self._watch(self._ping_at + limits.keepalive_timeout, "keepalive ping not answered")
