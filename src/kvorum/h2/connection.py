"""One end of an HTTP/2 connection without I/O: bytes go in, calls on streams and bytes come out.

What whoever owns the socket must do:

1. Give every piece of input to ``receive(data, now)``, in order; report the end with ``lost()``.
2. Afterwards, and whenever ``wake`` was called, write what ``take()`` returns. ``wake`` is called
   once until the next ``take``, and never from within ``receive``.
3. Once ``closed`` is set, close the socket after that write.
4. While the socket accepts no more, ``hold()``; when it does again, ``release()``.
5. Call ``tick(now)`` when ``next_check`` has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from kvorum.h2 import frames
from kvorum.h2.assembly import HeadAssembly
from kvorum.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_STREAM,
    FRAME_HEAD,
    FRAME_NAMES,
    GOAWAY,
    HEADERS,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    Setting,
    StreamFault,
)
from kvorum.h2.hpack import Decoder, Field
from kvorum.h2.limits import Bucket, Limits
from kvorum.h2.rules import SIZES, STATE_BITS, VERDICTS, Action, State
from kvorum.h2.stream import Stream

_unpack: Final = FRAME_HEAD.unpack_from
_NEVER: Final = float("inf")


class Endpoint:
    """What client and server have in common.

    ``room`` is how many DATA bytes may be sent in this loop turn; ``_reserve`` what the peer's
    connection window permits beyond that. Both together are the window (RFC 9113 section 6.9).
    ``out`` holds what ``take`` will return.
    """

    def __init__(self, limits: Limits, wake: Callable[[], None], now: float) -> None:
        self.limits = limits
        self.wake: Callable[[], None] = self._wake_once
        self._on_wake = wake
        self.now = now
        self.last_read = now
        self.out: list[bytes | memoryview] = []
        self.quiet = True
        self.closed = False
        self.fault: ConnectionFault | None = None
        self.streams: dict[int, Stream] = {}
        self.last_sid = 0
        self.ready: deque[Stream] = deque()
        self.backlog = 0
        self._stuck_since: float | None = None
        self._stuck_at = 0
        self.recv_backlog = 0
        # The peer's settings, at their defaults until its SETTINGS frame comes.
        self.peer_window = DEFAULT_WINDOW
        self.peer_frame = DEFAULT_FRAME_SIZE
        self.peer_max_streams = 2**32 - 1
        self.peer_header_list = 2**32 - 1
        self.settled = False
        self.room = DEFAULT_WINDOW
        self._reserve = 0
        self._held = False
        self._granted = DEFAULT_WINDOW
        self.recv_left = limits.connection_window
        self.decoder = Decoder()
        self._rest = b""
        self._rest_since = now
        self._assembly = HeadAssembly(limits)
        self._lingering: dict[int, None] = {}
        self._resets = Bucket(limits.reset_burst, limits.reset_rate, now)
        self._nuisance = Bucket(limits.nuisance_burst, limits.nuisance_rate, now)
        self.went_away = False

    # --- the socket's side ----------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take input; answers and calls happen inside. Never raises for what the peer did."""
        if self.closed:
            return
        self.quiet = False
        self.now = self.last_read = now
        if self._rest:
            data = self._rest + data
        try:
            used = self._frames(data)
            if used or not self._rest:
                self._rest_since = now
            self._rest = data[used:] if used < len(data) else b""
            if not self.closed:
                self._after_frames()
        except ConnectionFault as fault:
            self.terminate(fault)

    def take(self) -> bytes:
        """All that is to be written now."""
        if self.ready:
            self._pump()
        data = b"".join(self.out)
        self.out.clear()
        self.quiet = True
        if self.went_away and not self.streams:
            self.closed = True
        self._refill()
        if self.ready and self.room > 0 and not self.closed:
            self.wake()
        return data

    def hold(self) -> None:
        """The socket takes no more: DATA stays in the streams' backlogs."""
        self._held = True
        self._reserve += self.room
        self.room = 0

    def release(self) -> None:
        self._held = False
        self._refill()
        if self.ready and self.quiet:
            self.wake()

    @property
    def choked(self) -> bool:
        """The socket is full and answers pile up: a peer that does not read should not ask."""
        return self._held and self.backlog > self.limits.stop_reading

    def lost(self) -> None:
        """The socket is gone; every open stream learns of it."""
        self.closed = True
        self.out.clear()
        self.ready.clear()
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.drop_backlog()
            stream.reset(ErrorCode.CANCEL)

    def finish(self) -> bool:
        """The peer has half-closed its socket, which HTTP/2 does not know: nothing goes on."""
        return False

    def terminate(self, fault: ConnectionFault) -> None:
        """Say GOAWAY and end the connection with what has been answered so far."""
        if self.closed:
            return
        self.fault = fault
        last = self.last_peer_sid()
        pending = self.out[:]
        pending.append(frames.goaway(last, fault.code, fault.reason.encode()[:256]))
        self.lost()
        self.out = pending
        if self.quiet:
            self.wake()

    def send(self, data: bytes) -> None:
        """Queue whole frames that are not subject to flow control."""
        self.out.append(data)
        if self.quiet:
            self.wake()

    @property
    def data_sent(self) -> int:
        """DATA bytes sent so far."""
        return self._granted - self.room - self._reserve

    def _wake_once(self) -> None:
        self.quiet = False
        self._on_wake()

    def _refill(self) -> None:
        if not self._held:
            total = self.room + self._reserve
            self.room = min(total, self.limits.send_burst)
            self._reserve = total - self.room

    def _pump(self) -> None:
        """Round robin over the streams that have data and window, one frame each."""
        ready = self.ready
        while ready and self.room > 0:
            ready.popleft().push()

    def _after_frames(self) -> None:
        """Once for each piece of input: give credit for all of it, send what may now be sent."""
        window = self.limits.connection_window
        used = window - self.recv_left
        if used > window >> 2:
            self.recv_left = window
            self.out.append(frames.window_update(0, used))
        if self._rest:
            self.set_check(self.now + self.limits.header_timeout)
        if self.ready:
            self._refill()
            self._pump()

    # --- what a side must say -------------------------------------------------------------------

    def last_peer_sid(self) -> int:
        """The last stream of the peer's that we may have acted upon, for GOAWAY."""
        raise NotImplementedError

    def state(self, sid: int) -> State:
        raise NotImplementedError

    def on_head(self, sid: int, block: bytes, end: bool) -> None:
        """A complete head, still encoded, on a stream that may have one. It must be decoded."""
        raise NotImplementedError

    def decode(self, block: bytes) -> list[Field] | None:
        """The fields of a block, None if they are too large."""
        return self.decoder.decode(block, self.limits.max_header_list)

    def on_settled(self) -> None:
        """The peer's first SETTINGS frame was applied."""

    def on_ping(self) -> None:
        """A PING that is not an answer."""

    def on_ping_ack(self, payload: bytes) -> None:
        """An answer to one of our PINGs."""

    def on_goaway(self, last_sid: int, code: int, debug: bytes) -> None:
        """The peer will not process streams above ``last_sid``."""

    # --- frames ---------------------------------------------------------------------------------

    def _frames(self, data: bytes) -> int:
        """Handle the complete frames in ``data``; returns how many bytes they were."""
        pos = 0
        end = len(data)
        while end - pos >= 9 and not self.closed:
            stop = self._frame_at(data, pos, end)
            if not stop:
                break
            pos = stop
        return pos

    def _frame_at(self, data: bytes, pos: int, end: int) -> int:
        """Handle the frame at ``pos``; the position after it, or 0 if it is not complete."""
        word: int
        flags: int
        sid: int
        word, flags, sid = _unpack(data, pos)
        length = word >> 8
        kind = word & 0xFF
        sid &= 0x7FFFFFFF  # RFC 9113 section 4.1: the reserved bit is ignored
        if length > self.limits.max_frame_size:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
        due = self._assembly.sid
        if due and (kind != CONTINUATION or sid != due):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "6.10: CONTINUATION expected")
        if not self.settled and (kind != SETTINGS or flags & ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "3.4: SETTINGS must come first")
        stop = pos + 9 + length
        if stop > end:
            return 0
        try:
            self._frame(kind, flags, sid, data[pos + 9 : stop])
        except StreamFault as fault:
            self.stream_fault(fault)
        return stop

    def _frame(self, kind: int, flags: int, sid: int, payload: bytes) -> None:
        if kind >= len(FRAME_NAMES):
            self.count_nuisance("unknown frames")
            return
        if kind == CONTINUATION and self._assembly.sid:
            self._continuation(flags, payload)
            return
        state = self.state(sid) if sid else State.ZERO
        self._check_size(kind, sid, payload)
        if VERDICTS[kind << STATE_BITS | state].action is Action.ACCEPT:
            _HANDLERS[kind](self, flags, sid, payload)
        else:
            self._refuse(kind, flags, sid, payload, state=state)

    def _check_size(self, kind: int, sid: int, payload: bytes) -> None:
        size = SIZES.get(kind)
        if size is None or size == len(payload):
            return
        reason = f"{FRAME_NAMES[kind]} of {len(payload)} bytes"
        if kind == PRIORITY and sid:
            raise StreamFault(sid, ErrorCode.FRAME_SIZE_ERROR, reason)
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, reason)

    def _refuse(self, kind: int, flags: int, sid: int, payload: bytes, *, state: State) -> None:
        """Act on a frame that the table does not allow."""
        verdict = VERDICTS[kind << STATE_BITS | state]
        if verdict.action is Action.CONNECTION_ERROR:
            raise ConnectionFault(verdict.code, f"{FRAME_NAMES[kind]}: {verdict.section}")
        # The peer counted these, so we must: windows and header tables are of the connection.
        if kind == DATA:
            self._take_window(len(payload))
            if not payload:
                self.count_nuisance("empty DATA frames")
            if flags & END_STREAM:
                self._lingering.pop(sid, None)
        elif kind == HEADERS:
            self._head(flags, sid, payload)
            return
        elif kind == RST_STREAM:
            self.count_reset()
            self._lingering.pop(sid, None)
        if verdict.action is Action.STREAM_ERROR:
            raise StreamFault(sid, verdict.code, f"{FRAME_NAMES[kind]}: {verdict.section}")

    def _take_window(self, size: int) -> None:
        self.recv_left -= size
        if self.recv_left < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overrun")

    def _data(self, flags: int, sid: int, payload: bytes) -> None:
        size = len(payload)
        self._take_window(size)
        stream = self.streams[sid]
        if not stream.take_window(size):
            raise StreamFault(sid, ErrorCode.FLOW_CONTROL_ERROR, "stream window overrun")
        end = flags & END_STREAM != 0
        data = frames.unpad(flags, payload)
        stream.check_length(len(data), end)
        if not data and not end:
            self.count_nuisance("empty DATA frames")
        if end:
            stream.peer_done = True
        elif size > len(data):
            stream.credit(size - len(data))
        stream.feed(data, end)

    # --- heads ----------------------------------------------------------------------------------

    def _head(self, flags: int, sid: int, payload: bytes) -> None:
        block = self._assembly.begin(flags, sid, payload, self.now)
        if block is not None:
            self._head_block(*block)
        else:
            self.set_check(self.now + self.limits.header_timeout)

    def _continuation(self, flags: int, payload: bytes) -> None:
        block = self._assembly.add(flags, payload)
        if block is not None:
            self._head_block(*block)

    def _head_block(self, sid: int, block: bytes, end: bool) -> None:
        state = self.state(sid)
        verdict = VERDICTS[HEADERS << STATE_BITS | state]
        if verdict.action is Action.ACCEPT:
            self.on_head(sid, block, end)
            return
        self.decode(block)
        if verdict.action is Action.STREAM_ERROR:
            raise StreamFault(sid, verdict.code, verdict.section)
        self.count_nuisance("heads on closed streams")

    # --- the other frames -----------------------------------------------------------------------

    def _priority(self, flags: int, sid: int, payload: bytes) -> None:
        del flags
        self.count_nuisance("PRIORITY frames")
        if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == sid:
            raise StreamFault(sid, ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")

    def _rst_stream(self, flags: int, sid: int, payload: bytes) -> None:
        del flags
        stream = self.streams.get(sid)
        if stream is None:
            return
        self.count_reset()
        stream.peer_done = True
        self.forget(stream)
        stream.drop_backlog()
        stream.reset(int.from_bytes(payload, "big"))

    def _settings(self, flags: int, sid: int, payload: bytes) -> None:
        del sid
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS not a multiple of six")
        if self.settled:
            self.count_nuisance("SETTINGS frames")
        # Of a parameter that is repeated the last counts; each window change costs a look at
        # all streams, so that applying all of them would be an amplifier.
        for key, value in dict(frames.parse_settings(payload)).items():
            self._apply_setting(key, value)
        self.out.append(frames.frame(SETTINGS, ACK, 0, b""))
        if not self.settled:
            self.settled = True
            self.on_settled()

    def _apply_setting(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            self._change_window(value)
        elif key == Setting.MAX_FRAME_SIZE:
            if not DEFAULT_FRAME_SIZE <= value <= MAX_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            self.peer_frame = min(value, self.limits.max_frame_size)
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
        elif key == Setting.MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif key == Setting.MAX_HEADER_LIST_SIZE:
            self.peer_header_list = value

    def _change_window(self, value: int) -> None:
        """Section 6.9.2: the windows of all open streams move with the setting."""
        streams = self.streams.values()
        if value > MAX_WINDOW or any(value + s.delta > MAX_WINDOW for s in streams):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
        grown = value > self.peer_window
        self.peer_window = value
        if grown:
            for stream in streams:
                stream.list_ready()

    def _ping(self, flags: int, sid: int, payload: bytes) -> None:
        del sid
        if flags & ACK:
            self.on_ping_ack(payload)
            return
        self.out.append(frames.ping(payload, ack=True))
        self.on_ping()

    def _goaway(self, flags: int, sid: int, payload: bytes) -> None:
        del flags, sid
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY cut short")
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        self.on_goaway(last, int.from_bytes(payload[4:8], "big"), payload[8:])

    def _window_update(self, flags: int, sid: int, payload: bytes) -> None:
        del flags
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not sid:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "window update of 0")
            self._reserve += increment
            self._granted += increment
            if self.room + self._reserve > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflow")
            return
        stream = self.streams[sid]
        if not increment:
            raise StreamFault(sid, ErrorCode.PROTOCOL_ERROR, "window update of 0")
        stream.delta += increment
        if self.peer_window + stream.delta > MAX_WINDOW:
            raise StreamFault(sid, ErrorCode.FLOW_CONTROL_ERROR, "stream window overflow")
        stream.list_ready()

    # --- ends of streams ------------------------------------------------------------------------

    def forget(self, stream: Stream) -> None:
        """The stream is closed on our side; late frames are tolerated if the peer's is open."""
        self.streams.pop(stream.sid, None)
        if not stream.peer_done:
            self._linger(stream.sid)

    def _linger(self, sid: int) -> None:
        self._lingering[sid] = None
        if len(self._lingering) > self.limits.max_lingering:
            del self._lingering[next(iter(self._lingering))]

    def lingers(self, sid: int) -> bool:
        return sid in self._lingering

    def reset_stream(self, sid: int, code: ErrorCode) -> None:
        """Send RST_STREAM and forget the stream; its owner is told."""
        stream = self.streams.get(sid)
        self.send(frames.rst_stream(sid, code))
        if stream is None:
            self._linger(sid)
            return
        self.forget(stream)
        stream.drop_backlog()
        stream.reset(code)

    def stream_fault(self, fault: StreamFault) -> None:
        """The peer broke a stream's rules. It counts as a reset, since it can be provoked at will
        (CVE-2025-8671)."""
        self.count_reset()
        self.reset_stream(fault.sid, fault.code)

    # --- bounds ---------------------------------------------------------------------------------

    def count_reset(self) -> None:
        if not self._resets.take(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")

    def count_nuisance(self, what: str) -> None:
        if not self._nuisance.take(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")

    def check_backlog(self, alone: bool) -> None:
        """After more was queued; ``alone`` if nothing was queued before."""
        limits = self.limits
        if self.backlog > limits.max_send_backlog and not alone:
            self.terminate(_unread())
        elif self.backlog > limits.stop_reading and self._stuck_since is None:
            self._stuck_since = self.now
            self._stuck_at = self.data_sent
            self.set_check(self.now + limits.write_stall_timeout)

    def _watch_backlog(self, since: float) -> None:
        """Much has been waiting ``since`` then: has the peer's window let any of it go?"""
        limits = self.limits
        if self.backlog <= limits.stop_reading:
            self._stuck_since = None
            return
        if self.data_sent != self._stuck_at:
            self._stuck_since = since = self.now
            self._stuck_at = self.data_sent
        due = since + limits.write_stall_timeout
        if due <= self.now:
            self.terminate(_unread())
        else:
            self.set_check(due)

    # --- time -----------------------------------------------------------------------------------

    next_check: float = _NEVER

    def set_check(self, at: float) -> None:
        self.next_check = min(self.next_check, at)

    def tick(self, now: float) -> None:
        """Check what must have happened by now; sets ``next_check`` anew."""
        self.now = now
        self.next_check = _NEVER
        if self.closed:
            return
        self._await_rest(self._assembly.since, "head not completed")
        if self._rest:
            self._await_rest(self._rest_since, "frame not completed")
        if self._stuck_since is not None:
            self._watch_backlog(self._stuck_since)

    def _await_rest(self, since: float, what: str) -> None:
        due = since + self.limits.header_timeout
        if due <= self.now:
            self.terminate(ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, what))
        else:
            self.set_check(due)


def _unread() -> ConnectionFault:
    return ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "replies are not being read")


_HANDLERS: Final[dict[int, Callable[[Endpoint, int, int, bytes], None]]] = {
    DATA: Endpoint._data,
    HEADERS: Endpoint._head,
    PRIORITY: Endpoint._priority,
    RST_STREAM: Endpoint._rst_stream,
    SETTINGS: Endpoint._settings,
    PING: Endpoint._ping,
    GOAWAY: Endpoint._goaway,
    WINDOW_UPDATE: Endpoint._window_update,
}

assert len(PREFACE) == 24
