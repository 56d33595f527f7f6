"""HTTP/1.1 on the server's side, without I/O: httptools parses, this bounds and answers.

It obeys the same seam as the HTTP/2 connection (see ``connection``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from kvorum.h2.http import (
    Answer,
    BodySource,
    Certificate,
    Headers,
    HttpRequest,
    HttpResponse,
    WantsSource,
    reason,
    split_target,
    text_response,
)
from kvorum.h2.limits import Limits

_NEVER: Final = float("inf")
_BODILESS: Final = frozenset((204, 304))


class _Refused(Exception):
    """The request is answered with this status, and the connection ends."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = text_response(status, text)


class Http1Connection:
    """One connection. Requests are answered in order, one at a time."""

    def __init__(
        self,
        run: Callable[[Answer, HttpRequest], None],
        limits: Limits,
        wake: Callable[[], None],
        now: float,
        *,
        peer: str = "",
        secure: bool = False,
        certificate: Certificate | None = None,
        wants_source: WantsSource | None = None,
    ) -> None:
        self.limits = limits
        self.closed = False
        self.next_check = now + limits.header_timeout
        self._run = run
        self._wake = wake
        self._peer = peer
        self._secure = secure
        self._certificate = certificate
        self.out: list[bytes] = []
        self._quiet = True
        self._draining = False
        self._held = False
        self._now = self._progress = now
        self._parser = HttpRequestParser(self)
        self._wants_source = wants_source
        self._source: BodySource | None = None
        self._running = False
        self._in_head = True
        self._head_size = 0
        self._url = b""
        self._headers: Headers = []
        self._body: list[bytes] = []
        self._body_size = 0
        self._waiting: deque[tuple[HttpRequest, bool]] = deque()
        self._waiting_size = 0
        self._incoming: HttpRequest | None = None
        self._answer: _Http1Answer | None = None
        self._refusal: _Refused | None = None

    # --- the seam -------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        if self.closed or self._refusal is not None:
            return
        self._quiet = False
        self._now = now
        if not self._in_head:
            self._progress = now
        self._head_size += len(data)
        try:
            self._feed(data)
            if self._in_head and self._head_size > self.limits.max_http_head:
                raise _Refused(431, "Request Header Fields Too Large")
        except _Refused as refusal:
            self._refuse(refusal)
        except HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, _Refused) else _Refused(400, "Bad Request"))
        self._next()

    def _refuse(self, refusal: _Refused) -> None:
        self._refusal = refusal
        self._lose_source()

    def _lose_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.lose()

    def take(self) -> bytes:
        data = b"".join(self.out)
        self.out.clear()
        self._quiet = True
        return data

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        if self._answer is not None:
            self._answer.writable()

    def lost(self) -> None:
        self.closed = True
        self._waiting.clear()
        self._lose_source()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.cancelled()

    def finish(self) -> bool:
        """The client has half-closed; whether anything is left to be answered."""
        self._draining = True
        self._lose_source()
        return self._answer is not None

    def drain(self, now: float) -> None:
        self._now = now
        self._draining = True
        if self._answer is None and not self._waiting:
            self.closed = True
            self._notify()

    @property
    def choked(self) -> bool:
        """Too much is read ahead; more input should wait."""
        limits = self.limits
        source = self._source
        return (
            len(self._waiting) > limits.max_pipelined
            or self._waiting_size > limits.max_http_body
            or (source is not None and source.held > limits.stream_window)
        )

    def tick(self, now: float) -> None:
        """End a connection whose head or body does not come, or that is not used."""
        limits = self.limits
        source = self._source
        if self._answer is not None and (source is None or source.held):
            self._progress = now
            self.next_check = now + limits.header_timeout
            return
        started = self._head_size > 0 and self._in_head
        due = self._progress + (limits.header_timeout if started else limits.http_idle_timeout)
        if due > now:
            self.next_check = min(due, now + limits.header_timeout)
            return
        self._lose_source()
        self.closed = True
        if self._answer is None and (started or not self._in_head):
            self.answer_last(_Refused(408, "Request Timeout").response)

    # --- the parser's callbacks -----------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # Upgrades are not taken: the request was served as it is, and the rest is HTTP/1.1.
            self._parser = HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if rest:
                self._feed(rest)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._progress = self._now
        self._url = b""
        self._headers = []
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer of a chunked body; nothing here knows any
        text = value.decode("latin-1").rstrip(" \t")  # the parser leaves trailing whitespace
        self._headers.append((name.decode("latin-1").lower(), text))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_size = 0
        fields = dict(self._headers)
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _Refused(505, "HTTP Version Not Supported")
        if version == "1.1" and sum(name == "host" for name, _ in self._headers) != 1:
            raise _Refused(400, "400 Bad Request: missing required Host header")
        request = self._request(version)
        if self._wants_source is not None and self._wants_source(request):
            self._source = request.source = BodySource(self._notify)
            self._waiting.append((request, self._parser.should_keep_alive()))
        elif int(fields.get("content-length", "0")) > self.limits.max_http_body:
            raise _Refused(413, "Request Entity Too Large")
        else:
            self._incoming = request
        if version == "1.1" and fields.get("expect", "").lower() == "100-continue":
            self._continue()

    def _request(self, version: str) -> HttpRequest:
        path, query = split_target(self._url.decode("latin-1"))
        return HttpRequest(
            self._parser.get_method().decode("ascii"),
            path,
            query,
            self._headers,
            b"",
            version,
            self._peer,
            self._secure,
            self._certificate,
        )

    def _continue(self) -> None:
        """Ask for the body, unless that would come in the middle of another answer."""
        if self._answer is None and len(self._waiting) <= (self._source is not None):
            self.out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._source is not None:
            self._source.feed(body)
            return
        self._body.append(body)
        self._body_size += len(body)
        if self._body_size > self.limits.max_http_body:
            raise _Refused(413, "Request Entity Too Large")

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head_size = 0
        self._progress = self._now
        if self._source is not None:
            source, self._source = self._source, None
            source.end()
            return
        request = self._incoming
        assert request is not None
        request.body = b"".join(self._body)
        self._body = []
        self._waiting_size += self._body_size
        self._body_size = 0
        self._waiting.append((request, self._parser.should_keep_alive()))

    # --- answers --------------------------------------------------------------------------------

    def _next(self) -> None:
        """Start the next request; after the last, the refusal of what could not be parsed."""
        if self._running:
            return  # an answer given at once; the loop below goes on
        self._running = True
        while self._answer is None and self._waiting and not self.closed:
            request, keep = self._waiting.popleft()
            self._waiting_size -= len(request.body)
            self._answer = _Http1Answer(self, request, keep and not self._draining)
            self._run(self._answer, request)
        self._running = False
        if self._answer is None and self._refusal is not None and not self.closed:
            self.answer_last(self._refusal.response)

    def answer_last(self, response: HttpResponse) -> None:
        """Answer outside of any request, and end the connection."""
        body = response.body
        assert isinstance(body, bytes)
        head = _head(response.status, response.headers, len(body), "close")
        self.out.append(head + body)
        self.closed = True
        self._notify()

    def answered(self, keep: bool) -> None:
        self._answer = None
        self._progress = self._now
        self.next_check = self._now + self.limits.header_timeout
        if not keep or self._draining or self._source is not None:
            self.closed = (
                True  # also if the body is not read to its end: what follows is not a head
            )
        self._notify()
        if not self.closed and (self._waiting or self._refusal is not None):
            self._next()

    def emit(self, data: bytes) -> bool:
        """Queue output; False if the socket takes no more for now."""
        self.out.append(data)
        self._notify()
        return not self._held

    def _notify(self) -> None:
        if self._quiet:
            self._quiet = False
            self._wake()


def _head(status: int, headers: Headers, length: int | None, last: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason(status)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if status not in _BODILESS:
        lines.append(
            "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        )
    if last:
        lines.append(f"connection: {last}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Http1Answer:
    """The answer to one request."""

    def __init__(self, conn: Http1Connection, request: HttpRequest, keep: bool) -> None:
        self.backlog = 0
        self.on_writable: Callable[[], None] | None = None
        self.on_cancel: Callable[[], None] | None = None
        self._conn: Http1Connection | None = conn
        self._old = request.version == "1.0"
        self._bodiless = request.method == "HEAD"
        self._keep = keep
        self._chunked = False

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        conn = self._conn
        if conn is None:
            return
        self._chunked = length is None
        if self._chunked and self._old:
            self._keep = False  # the end of the connection is the end of the body
        last = "close" if not self._keep else "keep-alive" if self._old else ""
        head = _head(status, headers, length, last)
        if self._chunked and self._old:
            head = head.replace(b"transfer-encoding: chunked\r\n", b"")
        self._bodiless = self._bodiless or status in _BODILESS
        conn.emit(head)

    def write(self, data: bytes) -> None:
        conn = self._conn
        if conn is None or self._bodiless or not data:
            return
        if self._chunked and not self._old:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not conn.emit(data):
            self.backlog += len(data)
            if self.backlog > conn.limits.max_send_backlog:
                self.abort()

    def end(self) -> None:
        conn, self._conn = self._conn, None
        if conn is None:
            return
        if self._chunked and not self._old and not self._bodiless:
            conn.emit(b"0\r\n\r\n")
        conn.answered(self._keep)

    def abort(self) -> None:
        """Close in the middle: neither a length nor a last chunk will be there."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.answered(keep=False)

    def writable(self) -> None:
        self.backlog = 0
        if self.on_writable is not None:
            self.on_writable()

    def cancelled(self) -> None:
        self._conn = None
        if self.on_cancel is not None:
            self.on_cancel()
