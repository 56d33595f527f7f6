"""A small HTTP/1.1 client for what members ask of each other.

Connections are kept and used again, a bounded number for each server. Nothing is followed,
decompressed or remembered. What goes wrong is an ``OSError``: a refused or lost connection, a
time-out (``TimeoutError``), or a reply that is none (``HttpClientError``).
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from kvorum.config.urls import URL, parse_url
from kvorum.peer.http_connection import HttpClientError, HttpConnection, connect, request_head

__all__ = ["HttpClient", "HttpClientError", "HttpReply", "ReplyTooLarge", "StreamedReply"]

MAX_CONNECTIONS: Final = 64
"""Open at a time to one server; further requests wait, within their own time-out."""

MAX_IDLE: Final = 8
"""Kept for later, to one server."""

IDLE_TIMEOUT: Final = 4.0
"""Seconds. A peer of etcd's drops a connection that was silent for 5; we must be first, since a
request that meets a closing connection is lost, and only some may be sent twice."""

_READ_AHEAD: Final = 256 * 1024
"""Bytes of a streamed reply that may wait for their reader."""

_REPEATABLE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

Body = bytes | AsyncIterable[bytes]


class ReplyTooLarge(HttpClientError):
    """The reply's body is larger than the caller would take."""


class HttpReply(NamedTuple):
    """A whole reply; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class StreamedReply(NamedTuple):
    """A reply whose body is taken as it comes. The iterator must be run to its end, or closed
    (``aclose``); then its connection is used again, or closed."""

    status: int
    headers: dict[str, str]
    body: ReplyBody


class HttpClient:
    """Asks servers; one for a whole member. ``ssl`` is for URLs of https and unixs."""

    def __init__(
        self,
        *,
        ssl: tls.SSLContext | None = None,
        source: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> None:
        self._ssl = ssl
        self._source = source
        self._max_connections = max_connections
        self._idle_timeout = idle_timeout
        self._pools: dict[str, _Pool] = {}
        self._closed = False

    async def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        body: Body = b"",
        timeout: float | None,  # noqa: ASYNC109 - of the request as a whole, retry included
        max_body: int = 1 << 20,
    ) -> HttpReply:
        """The whole reply of the server at ``url`` (no path) to ``path`` (with its query).

        A body that is no bytes is sent chunked. A request that may be sent twice is, once, if a
        kept connection turns out to be closed. Without a time-out the caller must have one.

        Raises:
            ValueError: the URL, path or a header is malformed.
            OSError: no reply that could be used; TimeoutError after ``timeout`` seconds,
                ReplyTooLarge for a body of more than ``max_body`` bytes.
        """
        async with asyncio.timeout(timeout):
            reply = await self._begin(method, url, path, headers, body)
            try:
                whole = await reply.body.read(max_body)
            finally:
                await reply.body.aclose()
            return HttpReply(reply.status, reply.headers, whole)

    async def stream(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        body: Body = b"",
        timeout: float | None,  # noqa: ASYNC109 - until the head of the reply
    ) -> StreamedReply:
        """As ``request``, but gives the reply as soon as its head is there; ``timeout`` bounds the
        time until then, the request's body included."""
        async with asyncio.timeout(timeout):
            return await self._begin(method, url, path, headers, body)

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        self._closed = True
        for pool in list(self._pools.values()):
            pool.close()
        self._pools.clear()

    async def _begin(
        self, method: str, url: str, path: str, headers: Mapping[str, str], body: Body
    ) -> StreamedReply:
        if self._closed:
            raise ConnectionAbortedError("the HTTP client is closed")
        where = _parsed(url)
        length = len(body) if isinstance(body, bytes) else None
        head = request_head(method, where, path, headers.items(), length)
        pool = self._pool(str(where), where)
        repeatable = method in _REPEATABLE and isinstance(body, bytes)
        conn, fresh = await pool.take()
        try:
            return await _ask(pool, conn, head, body)
        except ConnectionError:
            if fresh or not repeatable:
                raise
        return await _ask(pool, await pool.take_new(), head, body)

    def _pool(self, key: str, url: URL) -> _Pool:
        pool = self._pools.get(key)
        if pool is None:
            self._forget_unused()
            pool = self._pools[key] = _Pool(
                url, self._ssl, self._source, self._max_connections, self._idle_timeout
            )
        return pool

    def _forget_unused(self) -> None:
        """Members change their URLs; what nobody uses any more must not pile up."""
        for key in [key for key, pool in self._pools.items() if pool.unused]:
            del self._pools[key]


@lru_cache(maxsize=256)
def _parsed(url: str) -> URL:
    return parse_url(url)


class _Pool:
    """The connections to one server."""

    def __init__(
        self,
        url: URL,
        ssl: tls.SSLContext | None,
        source: str | None,
        limit: int,
        idle_timeout: float,
    ) -> None:
        self._url = url
        self._ssl = ssl
        self._source = source
        self._limit = limit
        self._slots = asyncio.Semaphore(limit)
        self._used = 0
        self._idle_timeout = idle_timeout
        self._idle: deque[tuple[float, HttpConnection]] = deque()
        self._busy: set[HttpConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def unused(self) -> bool:
        return not self._used and not self._idle

    async def take(self) -> tuple[HttpConnection, bool]:
        """A connection, and whether it is new."""
        await self._enter()
        while self._idle:
            _, conn = self._idle.pop()
            if not conn.closed:
                self._busy.add(conn)
                return conn, False
        return await self._connect(), True

    async def take_new(self) -> HttpConnection:
        await self._enter()
        return await self._connect()

    async def _enter(self) -> None:
        self._used += 1
        try:
            await self._slots.acquire()
        except BaseException:
            self._used -= 1
            raise

    async def _connect(self) -> HttpConnection:
        try:
            conn = await connect(self._url, self._ssl, source=self._source)
        except BaseException:
            self._leave()
            raise
        if self._closed:
            conn.abort()
            self._leave()
            raise ConnectionAbortedError("the HTTP client is closed")
        self._busy.add(conn)
        return conn

    def _leave(self) -> None:
        self._used -= 1
        self._slots.release()

    def give_back(self, conn: HttpConnection) -> None:
        """The connection is not needed now; whatever is under way on it is given up."""
        self._busy.discard(conn)
        self._leave()
        if conn.closed or conn.busy or self._closed or len(self._idle) >= MAX_IDLE:
            conn.abort()
            return
        conn.resume()
        self._idle.append((self._loop.time() + self._idle_timeout, conn))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_timeout, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        while self._idle and (self._idle[0][0] <= now or self._idle[0][1].closed):
            self._idle.popleft()[1].abort()
        self._sweeper = None
        if self._idle:
            self._sweeper = self._loop.call_at(self._idle[0][0], self._sweep)

    def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for _, conn in self._idle:
            conn.abort()
        for conn in list(self._busy):
            conn.abort()
        self._idle.clear()


async def _ask(pool: _Pool, conn: HttpConnection, head: bytes, body: Body) -> StreamedReply:
    """Send the request and wait for the reply's head; the connection is given back with the body,
    or here if there will be none."""
    reply = ReplyBody(pool, conn)
    sender: asyncio.Task[None] | None = None
    try:
        if isinstance(body, bytes):
            conn.begin(reply, head + body)
        else:
            conn.begin(reply, head)
            sender = asyncio.ensure_future(_send_body(reply, conn, body))
        await reply.wait_head()
    except BaseException:
        conn.abort()
        await reply.aclose()
        raise
    finally:
        if sender is not None:
            await _stop(sender, conn)
    return StreamedReply(reply.status, reply.headers, reply)


async def _send_body(reply: ReplyBody, conn: HttpConnection, body: AsyncIterable[bytes]) -> None:
    try:
        async for piece in body:
            if piece:
                await conn.write(b"%x\r\n" % len(piece), piece, b"\r\n")
        await conn.write(b"0\r\n\r\n")
    except Exception as error:  # the caller's own iterator may raise anything: he gets it
        reply.fail(error)
        conn.abort()


async def _stop(sender: asyncio.Task[None], conn: HttpConnection) -> None:
    """A reply that came before the whole request was sent is the end of the connection."""
    if not sender.done():
        conn.closed = True
        sender.cancel()
    await asyncio.wait((sender,))


class ReplyBody(AsyncIterator[bytes]):
    """The reply on its way: first its head, then its body piece by piece."""

    def __init__(self, pool: _Pool, conn: HttpConnection) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._pool = pool
        self._conn: HttpConnection | None = conn
        self._parts: list[bytes] = []
        self._held = 0
        self._error: Exception | None = None
        self._ended = False
        self._changed = asyncio.Event()

    # --- the connection's calls -----------------------------------------------------------------

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._changed.set()

    def data(self, piece: bytes) -> None:
        self._parts.append(piece)
        self._held += len(piece)
        if self._held > _READ_AHEAD and self._conn is not None:
            self._conn.pause()
        self._changed.set()

    def done(self) -> None:
        self._ended = True
        self._changed.set()

    def lost(self, error: OSError) -> None:
        self.fail(error)

    def fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._changed.set()

    # --- the caller's ---------------------------------------------------------------------------

    async def wait_head(self) -> None:
        while not self.status:
            self._raise_error()
            await self._wait()

    async def read(self, limit: int) -> bytes:
        """The rest; raises ReplyTooLarge if it is more than ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for piece in self:
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise ReplyTooLarge(f"a reply of more than {limit} bytes")
        return b"".join(parts)

    def __aiter__(self) -> ReplyBody:
        return self

    async def __anext__(self) -> bytes:
        while not self._parts:
            if self._ended:
                await self.aclose()
                raise StopAsyncIteration
            self._raise_error()
            await self._wait()
        data = b"".join(self._parts)
        self._parts.clear()
        if self._held > _READ_AHEAD and self._conn is not None:
            self._conn.resume()
        self._held = 0
        return data

    async def aclose(self) -> None:
        """Give the connection back; what has not come yet is lost with it."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._pool.give_back(conn)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
