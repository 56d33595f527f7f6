"""One HTTP/1.1 connection of a client: httptools parses, an exchange takes what comes.

A connection serves one request at a time. It knows no time-outs; whoever uses it closes it.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Iterable
from typing import Final, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from kvorum.config.urls import URL

MAX_HEAD: Final = 64 * 1024
"""Status line and headers of a reply. Go's client: 10 MiB; nothing here sends 1 KiB."""

_BODILESS: Final = frozenset((204, 304))
_WRITE_AHEAD: Final = 256 * 1024
"""Bytes that may wait in us for the socket before a body has to wait."""


class HttpClientError(OSError):
    """The other side answers, but not with HTTP that can be used."""


class Exchange(Protocol):
    """Who gets the reply to one request. After ``done`` or ``lost`` nothing more comes."""

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Header names are in lower case; of a repeated one, the values are joined by commas."""

    def data(self, piece: bytes) -> None: ...

    def done(self) -> None: ...

    def lost(self, error: OSError) -> None: ...


class HttpConnection(asyncio.Protocol):
    """A socket to one server. ``closed`` once nothing can be asked over it any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.closed = False
        self.bytes_in = 0
        self.transport: asyncio.Transport
        self._loop = loop
        self._exchange: Exchange | None = None
        self._writable: asyncio.Future[None] | None = None
        self._held = False
        self._reset()

    def _reset(self) -> None:
        self._parser = HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._status = 0
        self._headers: dict[str, str] = {}
        self._head_size = 0
        self._in_head = True

    # --- what the user calls --------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return self._exchange is not None

    def begin(self, exchange: Exchange, head: bytes) -> None:
        """Send a request's head; its reply goes to ``exchange``."""
        assert self._exchange is None, "one request at a time"
        if self.closed:
            raise ConnectionResetError("connection is closed")
        self._reset()
        self._exchange = exchange
        self.transport.write(head)

    async def write(self, *parts: bytes) -> None:
        """Send a part of the request's body; waits while the socket is behind."""
        if self.closed:
            raise ConnectionResetError("connection is closed")
        self.transport.writelines(parts)
        if self._held:
            self._writable = self._writable or self._loop.create_future()
            await asyncio.shield(self._writable)

    def abort(self) -> None:
        """Close at once. The exchange under way is told."""
        self.closed = True
        self.transport.abort()

    def pause(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # --- asyncio's calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_WRITE_AHEAD)

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self._exchange is None:
            self.abort()  # nobody asked; whatever it is, the next answer could not be told from it
            return
        try:
            self._parser.feed_data(data)
            self._hand_over()
            if self._in_head:
                self._head_size += len(data)
                if self._head_size > MAX_HEAD:
                    raise HttpClientError(f"a reply's head is larger than {MAX_HEAD} bytes")
        except HttpParserUpgrade:
            self._fail(HttpClientError("the reply changes the protocol"))
        except HttpParserError as error:
            cause = error.__context__
            known = cause if isinstance(cause, OSError) else None
            self._fail(known or HttpClientError(f"malformed HTTP reply: {error}"))
            if cause is not None and known is None:
                raise cause from None  # a bug of who takes the reply, not the server's fault
        except HttpClientError as error:
            self._fail(error)

    def eof_received(self) -> bool:
        self.closed = True
        if self._ends_with_connection():
            self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._release()
        error = exc if isinstance(exc, OSError) else None
        self._tell_lost(error or ConnectionResetError("connection closed by the other side"))

    def pause_writing(self) -> None:
        self._held = True

    def resume_writing(self) -> None:
        self._held = False
        self._release()

    def _release(self) -> None:
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- the parser's calls ---------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer of a chunked body; nothing here knows any
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # an interim reply; the real one follows
        if self._exchange is None:
            raise HttpClientError("a reply that nobody asked for")
        self._status = status
        self._in_head = False
        self._exchange.head(status, self._headers)

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._hand_over()
        if self._in_head:
            self._headers = {}
            return
        if not self._parser.should_keep_alive():
            self.closed = True
        self._finish()

    def _hand_over(self) -> None:
        """All that one read has brought, in one piece: an etcd sends a chunk for every message."""
        pieces = self._pieces
        if pieces:
            self._pieces = []
            if self._exchange is not None:
                self._exchange.data(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    # --- ends -----------------------------------------------------------------------------------

    def _ends_with_connection(self) -> bool:
        """Whether the reply under way has no other end than the connection's."""
        fields = self._headers
        framed = "content-length" in fields or "transfer-encoding" in fields
        return not (self._in_head or framed or self._status in _BODILESS)

    def _finish(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.done()

    def _fail(self, error: OSError) -> None:
        self.abort()
        self._tell_lost(error)

    def _tell_lost(self, error: OSError) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(error)


async def connect(
    url: URL, ssl: tls.SSLContext | None = None, *, source: str | None = None
) -> HttpConnection:
    """A connection to the server of ``url`` (http, https, unix, unixs), from the local address
    ``source`` if one is given. Raises OSError."""
    loop = asyncio.get_running_loop()
    if url.is_tls and ssl is None:
        raise HttpClientError(f"no TLS settings for {url}")
    context = ssl if url.is_tls else None

    def make() -> HttpConnection:
        return HttpConnection(loop)

    if url.is_unix:
        name = "localhost" if context else None
        _, made = await loop.create_unix_connection(
            make, url.socket_path, ssl=context, server_hostname=name
        )
        return made
    port = url.port or (443 if url.is_tls else 80)
    local = (source, 0) if source else None
    try:
        _, made = await loop.create_connection(make, url.host, port, ssl=context, local_addr=local)
    except UnicodeError as error:
        raise HttpClientError(f"{url.host!r} is no host name: {error}") from error
    return made


def request_head(
    method: str, url: URL, path: str, headers: Iterable[tuple[str, str]], length: int | None
) -> bytes:
    """A request's first lines. ``length`` None is a chunked body; 0 of a GET is none.

    Raises ValueError for a header or path that would break out of its line.
    """
    host = "localhost" if url.is_unix else url.netloc
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length is None:
        lines.append("Transfer-Encoding: chunked")
    elif length or method not in ("GET", "HEAD"):
        lines.append(f"Content-Length: {length}")
    for line in lines:
        if "\r" in line or "\n" in line or "\0" in line:
            raise ValueError(f"a line break in {line!r}")
    if " " in path:
        raise ValueError(f"a space in the path {path!r}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
