"""One plain HTTP request over an HTTP/2 stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvorum.h2.frames import DATA, END_STREAM, ErrorCode, frame, headers, rst_stream
from kvorum.h2.heads import RequestHead
from kvorum.h2.hpack import encode
from kvorum.h2.http import Headers, HttpRequest, split_target
from kvorum.h2.stream import Stream

if TYPE_CHECKING:
    from kvorum.h2.server_core import ServerConnection

_HOP_BY_HOP: Final = frozenset(
    ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
)


class Exchange(Stream):
    """Collects the request, then is the ``Answer`` to it."""

    __slots__ = (
        "_done",
        "_head",
        "_is_head",
        "_parts",
        "_server",
        "_size",
        "on_cancel",
        "on_writable",
    )

    def __init__(self, conn: ServerConnection, sid: int, head: RequestHead) -> None:
        super().__init__(conn, sid, peer_done=False)
        self._server = conn
        self.expected = head.content_length
        self._head = head
        self._parts: list[bytes] = []
        self._size = 0
        self._done = False
        self._is_head = head.get(b":method") == b"HEAD"
        self.on_writable: Callable[[], None] | None = None
        self.on_cancel: Callable[[], None] | None = None

    def feed(self, data: bytes, end: bool) -> None:
        if self._done:
            return
        self._parts.append(data)
        self._size += len(data)
        self._server.recv_backlog += len(data)
        self.credit(len(data))
        limits = self._server.limits
        held = self._server.recv_backlog
        if self._size > limits.max_http_body or held > limits.max_receive_backlog:
            self._drop_body()
            self.begin(413, [], 0)
        elif end:
            body = b"".join(self._parts)
            self._drop_body()
            self._server.run_http(self, self._request(body))

    def _drop_body(self) -> None:
        self._server.recv_backlog -= self._size
        self._parts.clear()
        self._size = 0

    def _request(self, body: bytes) -> HttpRequest:
        head = self._head
        path, query = split_target(head.path)
        named = [
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in head.fields
            if name[:1] != b":"
        ]
        authority = head.get(b":authority")
        if authority and not head.get(b"host"):
            named.insert(0, ("host", authority.decode("latin-1")))
        method = head.get(b":method").decode("latin-1")
        conn = self._server
        return HttpRequest(
            method, path, query, named, body, "2", conn.peer, conn.secure, conn.certificate
        )

    # --- the answer -----------------------------------------------------------------------------

    def begin(self, status: int, fields: Headers, length: int | None) -> None:
        if self._done:
            return
        block = [(b":status", b"%d" % status)]
        for name, value in fields:
            lower = name.lower()
            if lower not in _HOP_BY_HOP:  # RFC 9113 section 8.2.2
                block.append((lower.encode("ascii"), value.encode("latin-1")))
        if length is not None:
            block.append((b"content-length", b"%d" % length))
        end = self._is_head or length == 0
        max_frame = self._server.peer_frame
        head = headers(self.sid, encode(block), end_stream=end, max_frame=max_frame)
        if end:
            self._finish(head)
        else:
            self._server.send(head)

    def write(self, data: bytes) -> None:
        if not self._done:
            super().write(data)

    def end(self) -> None:
        if not self._done:
            self._finish(frame(DATA, END_STREAM, self.sid, b""))

    def abort(self) -> None:
        if not self._done:
            self._done = True
            self._server.reset_stream(self.sid, ErrorCode.INTERNAL_ERROR)

    def _finish(self, tail: bytes) -> None:
        self._done = True
        if not self.peer_done:
            tail += rst_stream(self.sid, ErrorCode.NO_ERROR)
        self.finish_with(tail)

    def reset(self, code: int) -> None:
        del code
        self._drop_body()
        if not self._done:
            self._done = True
            if self.on_cancel is not None:
                self.on_cancel()

    def drained(self) -> None:
        if self.on_writable is not None and not self._done:
            self.on_writable()
