"""What all streams share: sending within the peer's windows, and giving credit for what came."""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from kvorum.h2.frames import FRAME_HEAD, ErrorCode, StreamFault, window_update

if TYPE_CHECKING:
    from kvorum.h2.connection import Endpoint
    from kvorum.h2.method import Method

_pack: Final = FRAME_HEAD.pack
_pack_prefix: Final = Struct(">BI").pack
_pack_message: Final = Struct(">IBIBI").pack  # a DATA frame's header and a message's prefix


class Stream:
    """One stream. Subclasses say what its bytes mean.

    ``conn`` the connection; ``sid`` its id; ``peer_done`` whether the peer has ended its side;
    ``delta`` the send window's distance from the peer's SETTINGS_INITIAL_WINDOW_SIZE, so that a
    change of that setting costs nothing a stream (RFC 9113 section 6.9.2);
    ``backlog`` bytes not yet handed to the socket; ``expected`` bytes still to come according to
    content-length; ``waiting`` the method of a unary call of which only the head is here.
    """

    __slots__ = (
        "_listed",
        "_owed",
        "_queue",
        "_tail",
        "backlog",
        "conn",
        "delta",
        "expected",
        "peer_done",
        "recv_left",
        "sid",
        "waiting",
    )

    conn: Endpoint
    sid: int
    peer_done: bool
    delta: int
    backlog: int
    recv_left: int
    expected: int | None
    waiting: Method | None
    _owed: int
    _queue: deque[bytes | memoryview] | None
    _tail: bytes | None
    _listed: bool

    def __init__(self, conn: Endpoint, sid: int, peer_done: bool) -> None:
        self.conn = conn
        self.sid = sid
        self.peer_done = peer_done
        self.delta = 0
        self.backlog = 0
        self.recv_left = conn.limits.stream_window
        self.expected = None
        self.waiting = None
        self._owed = 0
        self._queue = None
        self._tail = None
        self._listed = False

    # What a subclass must say.

    def feed(self, data: bytes, end: bool) -> None:
        """Body bytes that arrived, in order; ``end`` with the last. They must be credited."""
        raise NotImplementedError

    def reset(self, code: int) -> None:
        """The stream is gone: reset by the peer or by us, or the connection was lost."""
        raise NotImplementedError

    def drained(self) -> None:
        """The backlog has become small after it was not."""

    # Sending.

    def write(self, data: bytes) -> None:
        """Send DATA payload: at once as far as the windows permit, the rest when they grow."""
        conn = self.conn
        size = len(data)
        if (
            not self.backlog
            and size <= conn.room
            and size <= conn.peer_window + self.delta
            and size <= conn.peer_frame
        ):
            conn.room -= size
            self.delta -= size
            conn.out += (_pack(size << 8, 0, self.sid), data)
            if conn.quiet:
                conn.wake()
            return
        self._enqueue(data)

    def write_message(self, message: bytes) -> None:
        """Send a gRPC message, without a copy of it."""
        conn = self.conn
        length = len(message)
        size = length + 5
        if (
            not self.backlog
            and size <= conn.room
            and size <= conn.peer_window + self.delta
            and size <= conn.peer_frame
        ):
            conn.room -= size
            self.delta -= size
            conn.out += (_pack_message(size << 8, 0, self.sid, 0, length), message)
            if conn.quiet:
                conn.wake()
            return
        self._enqueue(_pack_prefix(0, length), message)

    def finish_with(self, tail: bytes) -> None:
        """Send the frames that end our side, after all data. The stream is then gone."""
        if self.backlog:
            self._tail = tail
        else:
            self._close(tail)

    def _enqueue(self, *pieces: bytes) -> None:
        conn = self.conn
        alone = not conn.backlog
        if self._queue is None:
            self._queue = deque()
        for piece in pieces:
            if piece:
                self._queue.append(piece)
                self.backlog += len(piece)
                conn.backlog += len(piece)
        self.list_ready()
        conn.check_backlog(alone)

    def list_ready(self) -> None:
        """Have the connection call ``push`` as soon as it has room, if our own window has."""
        if self.backlog and not self._listed and self.conn.peer_window + self.delta > 0:
            self._listed = True
            conn = self.conn
            conn.ready.append(self)
            if conn.quiet and conn.room > 0:
                conn.wake()

    def push(self) -> None:
        """Send one frame of the backlog; called by the connection while it has room."""
        self._listed = False
        conn = self.conn
        size = min(conn.room, conn.peer_window + self.delta, conn.peer_frame, self.backlog)
        if size <= 0:
            return
        conn.room -= size
        self.delta -= size
        self.backlog -= size
        conn.backlog -= size
        conn.out.append(_pack(size << 8, 0, self.sid))
        self._move(size)
        if self.backlog:
            self.list_ready()
        elif self._tail is not None:
            self._close(self._tail)
            return
        if self.backlog <= conn.limits.send_low_water < self.backlog + size:
            self.drained()

    def _move(self, size: int) -> None:
        """Hand the first ``size`` bytes of the queue to the connection."""
        queue = self._queue
        assert queue is not None
        out = self.conn.out
        while size:
            first = queue.popleft()
            if len(first) > size:
                # A view, so that a large message is not copied for each frame.
                view = memoryview(first)
                queue.appendleft(view[size:])
                first = view[:size]
            out.append(first)
            size -= len(first)

    def _close(self, tail: bytes) -> None:
        conn = self.conn
        conn.out.append(tail)
        conn.forget(self)
        if conn.quiet:
            conn.wake()

    def drop_backlog(self) -> None:
        self.conn.backlog -= self.backlog
        self.backlog = 0
        self._queue = None
        self._tail = None

    # Receiving.

    def check_length(self, size: int, end: bool) -> None:
        """Body bytes came; compare with content-length (RFC 9113 section 8.1.1)."""
        if self.expected is None:
            return
        self.expected -= size
        if self.expected < 0 or (end and self.expected):
            raise StreamFault(self.sid, ErrorCode.PROTOCOL_ERROR, "8.1.1: not the content-length")

    def take_window(self, size: int) -> bool:
        """Account for a DATA frame of ``size`` bytes; False if the peer overran the window."""
        self.recv_left -= size
        return self.recv_left >= 0

    def credit(self, size: int) -> None:
        """Let the peer send more, now that ``size`` bytes are consumed; in half-window steps."""
        self._owed += size
        if self._owed > self.conn.limits.stream_window >> 1 and not self.peer_done:
            self.recv_left += self._owed
            self.conn.send(window_update(self.sid, self._owed))
            self._owed = 0
