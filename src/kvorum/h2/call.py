"""One RPC on the server's side."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from kvorum.errors import Code
from kvorum.h2.frames import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    ErrorCode,
    headers,
    rst_stream,
)
from kvorum.h2.heads import RequestHead, refusal_block
from kvorum.h2.hpack import Field, encode
from kvorum.h2.http import Certificate
from kvorum.h2.message import Inbox
from kvorum.h2.method import Method
from kvorum.h2.status import RpcError, encode_message
from kvorum.h2.stream import Stream

if TYPE_CHECKING:
    from kvorum.h2.server_core import ServerConnection

_HEAD_BLOCK: Final = encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
_OK_BLOCK: Final = encode([(b"grpc-status", b"0")])
_OK_FLAGS: Final = END_HEADERS | END_STREAM

# A reply is these two around the message: response head, DATA frame head with message prefix, and
# the trailers. Everything but the stream id and the lengths is constant.
_REPLY_HEAD: Final = Struct(f">IBI{len(_HEAD_BLOCK)}sIBIBI")
_HEAD_WORD: Final = len(_HEAD_BLOCK) << 8 | HEADERS
_REPLY_TAIL: Final = Struct(f">IBI{len(_OK_BLOCK)}s")
_TAIL_WORD: Final = len(_OK_BLOCK) << 8 | HEADERS
_pack_head: Final = _REPLY_HEAD.pack
_pack_tail: Final = _REPLY_TAIL.pack

_CARDINALITY: Final = "cardinality violation: "

_STATUS_CACHE: Final = 256
_STATUS_SIZE: Final = 512  # longer texts are not remembered
_blocks: dict[tuple[int, str, bool], bytes] = {}


def status_block(code: int, message: str, *, alone: bool) -> bytes:
    """Trailers, or a whole answer if ``alone``; remembered, since texts repeat."""
    key = (code, message, alone)
    block = _blocks.get(key)
    if block is None:
        if alone:
            block = refusal_block(code, message)
        else:
            fields = [(b"grpc-status", b"%d" % code), (b"grpc-message", encode_message(message))]
            block = encode(fields)
        if len(message) <= _STATUS_SIZE:
            if len(_blocks) >= _STATUS_CACHE:
                _blocks.clear()
            _blocks[key] = block
    return block


class Call(Stream):
    """One RPC. A handler answers with ``reply`` or ``fail``, or with ``send`` and ``finish``;
    at once or later, from anywhere on the loop's thread. After the call has ended, whoever ended
    it, these do nothing.

    Callbacks of a streaming call, set by its handler: ``on_message(bytes)``, ``on_end()`` when the
    client has sent all, ``on_writable()`` when a backlog has become small. ``on_cancel()`` fires,
    for unary calls too, when the client gave up, was lost, or the deadline passed.
    ``deadline`` is in seconds of the server's clock, or None.
    """

    __slots__ = (
        "_done",
        "_head",
        "_headed",
        "_inbox",
        "_paused",
        "_request",
        "_server",
        "_uncredited",
        "deadline",
        "method",
        "on_cancel",
        "on_end",
        "on_message",
        "on_writable",
        "slot",
    )

    def __init__(self, conn: ServerConnection, sid: int, head: RequestHead, method: Method) -> None:
        # Stream.__init__ in place, as every microsecond here is one of each request.
        self.conn = conn
        self._server = conn
        self.sid = sid
        self.peer_done = False
        self.expected = head.content_length
        self.waiting: Method | None = method
        self.recv_left = conn.limits.stream_window
        self.delta = 0
        self.backlog = 0
        self._owed = 0
        self._queue = None
        self._tail = None
        self._listed = False
        self._head = head
        self._headed = False
        self._done = False
        self._inbox: Inbox | None = None
        self._paused = False
        self._uncredited = 0
        self._request: bytes | None = None
        self.method = method
        self.deadline: float | None = None
        self.slot: set[Any] | None = None
        self.on_message: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_cancel: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Call {self._head.path} stream {self.sid}{' done' if self._done else ''}>"

    @property
    def path(self) -> str:
        return self._head.path

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What the client sent with the call; shared, do not change it. See RequestHead."""
        return self._head.metadata

    @property
    def done(self) -> bool:
        """Whether the call has ended: answered, failed or cancelled."""
        return self._done

    @property
    def peer(self) -> str:
        """Where the client is, as text."""
        return self._server.peer

    @property
    def certificate(self) -> Certificate | None:
        """What the client proved by TLS, as ``SSLSocket.getpeercert`` gives it."""
        return self._server.certificate

    # --- answering ------------------------------------------------------------------------------

    def reply(self, message: bytes) -> None:
        """The one answer of the call, with status OK."""
        if self._done:
            return
        conn = self._server
        size = len(message)
        framed = size + 5
        if (
            framed > conn.room
            or framed > conn.peer_frame
            or framed > conn.peer_window + self.delta
            or self._headed
            or not self.peer_done
        ):
            self.send(message)
            self.finish()
            return
        self._done = True
        conn.room -= framed
        sid = self.sid
        del conn.streams[sid]
        method = self.method
        method.handled[0] += 1
        method.sent += 1
        if self.slot is not None:
            self.slot.discard(self)
        conn.out += (
            _pack_head(_HEAD_WORD, END_HEADERS, sid, _HEAD_BLOCK, framed << 8, 0, sid, 0, size),
            message,
            _pack_tail(_TAIL_WORD, _OK_FLAGS, sid, _OK_BLOCK),
        )
        if conn.quiet:
            conn.wake()

    def start(self, metadata: list[Field] | None = None) -> None:
        """Send the response head now, with metadata (raw fields); at the first message if not."""
        if self._done or self._headed:
            return
        self._headed = True
        block = _HEAD_BLOCK + encode(metadata) if metadata else _HEAD_BLOCK
        conn = self._server
        conn.send(headers(self.sid, block, end_stream=False, max_frame=conn.peer_frame))

    def send(self, message: bytes) -> None:
        """One message of a stream of answers. Look at ``backlog`` before sending much."""
        if self._done:
            return
        if not self._headed:
            self.start()
        self.method.sent += 1
        self.write_message(message)

    def finish(self) -> None:
        """End the call with status OK."""
        self._end(0, "")

    def fail(self, code: int, message: str) -> None:
        """End the call with this status."""
        self._end(code, message)

    def _end(self, code: int, message: str) -> None:
        if self._done:
            return
        alone = not self._headed
        if code == 0 and alone:
            self.start()
            alone = False
        self._settle(code)
        self._server.answers += 1
        block = _OK_BLOCK if code == 0 else status_block(code, message, alone=alone)
        if len(block) > self._server.peer_header_list:
            self.drop_backlog()
            self._server.reset_stream(self.sid, ErrorCode.INTERNAL_ERROR)
            return
        tail = headers(self.sid, block, end_stream=True, max_frame=self._server.peer_frame)
        if not self.peer_done:
            # RFC 9113 section 8.1: the answer is complete, the rest of the request is not wanted.
            tail += rst_stream(self.sid, ErrorCode.NO_ERROR)
        self.finish_with(tail)

    def _settle(self, code: int) -> None:
        """The call has its status; nothing of it may be held any longer than needed."""
        self._done = True
        self.waiting = None
        self.method.handled[code if 0 <= code < 17 else 2] += 1
        if self.slot is not None:
            self.slot.discard(self)
        self._drop_inbox()

    def _drop_inbox(self) -> None:
        if self._inbox is not None:
            self._server.recv_backlog -= self._inbox.held
            self._inbox = None

    def expire(self) -> None:
        """The deadline has passed: say so, and tell the handler to stop."""
        if self._done:
            return
        self.fail(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        self._cancelled()

    def reset(self, code: int) -> None:
        del code
        if self._done:
            return
        self._settle(Code.CANCELLED)
        self._cancelled()

    def _cancelled(self) -> None:
        if self.on_cancel is not None:
            self._tell(self.on_cancel)

    def drained(self) -> None:
        if self.on_writable is not None and not self._done:
            self._tell(self.on_writable)

    def _tell(self, callback: Callable[..., None], *args: bytes) -> None:
        """Call the handler back; what it raises ends its call, and nobody else's."""
        try:
            callback(*args)
        except Exception as error:
            self._server.handler_failed(self, error)

    # --- receiving ------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Deliver no more messages until ``resume_reading``; the client soon has to stop."""
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self.credit(self._uncredited)
            self._uncredited = 0
            self._deliver()

    def feed(self, data: bytes, end: bool) -> None:
        if self._done:
            return
        conn = self._server
        self.waiting = None
        inbox = self._inbox
        if inbox is None:
            inbox = self._inbox = Inbox(conn.limits.max_receive_message, self._head.gzip)
        inbox.feed(data)
        conn.recv_backlog += len(data)
        # Credit on arrival, so that a message may be larger than the window; what waits in the
        # inbox is then one message at most. A paused call gives none.
        if self._paused:
            self._uncredited += len(data)
        else:
            self.credit(len(data))
        self._deliver()
        if conn.recv_backlog > conn.limits.max_receive_backlog and self._inbox is not None:
            self._abandon(Code.RESOURCE_EXHAUSTED, "grpc: too many request bytes are waiting")

    def _abandon(self, code: int, message: str) -> None:
        """The request cannot be taken: answer with the status, and tell the handler to stop."""
        self.fail(code, message)
        if self.method.streaming:
            self._cancelled()

    def _deliver(self) -> None:
        """Hand over what is complete, as far as the handler wants it."""
        inbox = self._inbox
        try:
            while inbox is not None and not self._paused:
                before = inbox.held
                message = inbox.next()
                self._server.recv_backlog -= before - inbox.held
                if message is None:
                    if self.peer_done:
                        self._ended(inbox)
                    break
                self.method.received += 1
                self._message(message)
                inbox = self._inbox  # gone, if the handler has ended the call
        except RpcError as error:
            self._abandon(error.code, error.message)

    def _message(self, message: bytes) -> None:
        if self.method.streaming:
            if self.on_message is not None:
                self._tell(self.on_message, message)
        elif self._request is not None:
            raise RpcError(Code.INTERNAL, _CARDINALITY + "received multiple request messages")
        else:
            self._request = message

    def _ended(self, inbox: Inbox) -> None:
        if inbox.held:
            raise RpcError(Code.INTERNAL, "unexpected EOF")
        self._inbox = None
        if self.method.streaming:
            if self.on_end is not None:
                self._tell(self.on_end)
        elif self._request is None:
            raise RpcError(Code.INTERNAL, _CARDINALITY + "received no request message")
        else:
            self._server.run_unary(self, self._request)
