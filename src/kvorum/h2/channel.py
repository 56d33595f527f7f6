"""The client on an asyncio loop: one server, one connection at a time, calls of all four kinds."""

from __future__ import annotations

import asyncio
import random
import ssl as tls
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Final, cast

from kvorum.errors import Code
from kvorum.h2.client_core import (
    ClientCall,
    ClientConnection,
    Metadata,
    request_block,
    timeout_block,
)
from kvorum.h2.deadlines import Deadlines
from kvorum.h2.limits import Limits
from kvorum.h2.status import RpcError
from kvorum.version import VERSION

Pairs = Iterable[tuple[str, str | bytes]]
_Key = tuple[str, tuple[tuple[str, str | bytes], ...], float | None]

CLIENT_LIMITS: Final = Limits(
    max_receive_message=2**31 - 1,  # etcd's client: math.MaxInt32
    keepalive_interval=0.0,
)

_SWEEP: Final = 0.5
_BLOCK_CACHE: Final = 256
_UNREAD_MESSAGES: Final = 64
"""Messages a stream holds for a slow reader before it stops the server."""
_BACKLOG: Final = 256 * 1024
"""Bytes of a stream not yet sent before ``send`` waits."""
_ATTEMPTS: Final = 3
"""For a unary call that the server refuses without looking at it."""
_WAITING_CALLS: Final = 10_000
"""Calls that wait for a connection or a free stream; more fail at once."""


class Backoff:
    """gRPC's connection backoff, exponential with jitter, bounded."""

    def __init__(self, first: float = 0.1, factor: float = 1.6, last: float = 5.0) -> None:
        self._first = first
        self._factor = factor
        self._last = last
        self._next = first
        self._random = random.Random()

    def reset(self) -> None:
        self._next = self._first

    def next(self) -> float:
        wait = self._next * self._random.uniform(0.8, 1.2)
        self._next = min(self._next * self._factor, self._last)
        return wait


class _Link(asyncio.Protocol):
    """The connection's socket."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.core = ClientConnection(channel.limits, self._wake, self._loop.time(), channel)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._channel.links.add(self)
        self._timer = self._loop.call_later(_SWEEP, self._sweep)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.core.receive(data, self._loop.time())
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel.links.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.core.lost()

    def pause_writing(self) -> None:
        self.core.hold()

    def resume_writing(self) -> None:
        self.core.release()

    def _wake(self) -> None:
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        data = self.core.take()
        if data and not self.transport.is_closing():
            self.transport.write(data)
        if self.core.closed:
            self.transport.close()

    def _sweep(self) -> None:
        now = self._loop.time()
        if self.core.next_check <= now:
            self.core.tick(now)
            self.flush()
        self._timer = self._loop.call_later(_SWEEP, self._sweep)


class Channel:
    """Calls to one server. It connects when first used, and again after a loss, with backoff.

    While there is no connection, a call waits for the attempt under way, and fails with
    UNAVAILABLE if that fails (``wait_for_ready=True``: goes on waiting, up to its timeout). A call
    that the server has certainly not seen is tried again, twice at most.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ssl: tls.SSLContext | None = None,
        authority: str | None = None,
        metadata: Pairs = (),
        limits: Limits = CLIENT_LIMITS,
        backoff: Backoff | None = None,
        user_agent: str = f"kvorum-client/{VERSION}",
        connect_timeout: float = 20.0,
        path: str | None = None,
    ) -> None:
        """``path`` is a unix socket's, instead of host and port. ``metadata`` goes with each
        call. ``limits.keepalive_interval`` above 0 turns client pings on."""
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
        self.limits = limits
        self.links: set[_Link] = set()
        self._where = (host, port, path)
        self._ssl = ssl
        self._scheme = "https" if ssl is not None else "http"
        self._authority = authority or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self._metadata = tuple(metadata)
        self._agent = user_agent
        self._connect_timeout = connect_timeout
        self._backoff = backoff or Backoff()
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._closed = False
        self._connecting: asyncio.Task[None] | None = None
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._failure = "not connected"
        self._retry_at = 0.0
        self._blocks: dict[_Key, bytes] = {}
        self._deadlines = Deadlines(self._arm)
        self._timer: asyncio.TimerHandle | None = None

    # --- calls ----------------------------------------------------------------------------------

    async def unary(
        self,
        path: str,
        message: bytes,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the server
        metadata: Pairs = (),
        wait_for_ready: bool = False,
    ) -> bytes:
        """One message there, one back. Raises RpcError."""
        deadline = None if timeout is None else self._loop.time() + timeout
        for attempt in range(_ATTEMPTS):
            conn = self._ready()
            if conn is None:
                conn = await self._connection(deadline, wait_for_ready)
                timeout = self._left(deadline)
            call = _Unary(self, conn, self._block(path, metadata, timeout), timeout)
            call.rpc.send_only(message)
            try:
                return await call.future
            except asyncio.CancelledError:
                call.rpc.cancel()
                raise
            except RpcError:
                if not call.rpc.unprocessed or attempt + 1 == _ATTEMPTS:
                    raise
                timeout = self._left(deadline)
        raise AssertionError("not reached")

    async def stream(
        self,
        path: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the server
        metadata: Pairs = (),
        wait_for_ready: bool = False,
    ) -> StreamCall:
        """A call that sends and receives any number of messages."""
        deadline = None if timeout is None else self._loop.time() + timeout
        conn = self._ready()
        if conn is None:
            conn = await self._connection(deadline, wait_for_ready)
            timeout = self._left(deadline)
        return StreamCall(self, conn, self._block(path, metadata, timeout), timeout)

    async def server_stream(
        self,
        path: str,
        message: bytes,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the server
        metadata: Pairs = (),
        wait_for_ready: bool = False,
    ) -> StreamCall:
        """One message there, any number back: iterate over the result."""
        call = await self.stream(
            path, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready
        )
        call.rpc.send_only(message)
        return call

    async def client_stream(
        self,
        path: str,
        messages: AsyncIterable[bytes],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the server
        metadata: Pairs = (),
        wait_for_ready: bool = False,
    ) -> bytes:
        """Any number of messages there, one back. Raises RpcError."""
        call = await self.stream(
            path, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready
        )
        async with call:
            async for message in messages:
                if call.done:
                    break
                await call.send(message)
            await call.end()
            answer = await call.recv()
            if answer is None or await call.recv() is not None:
                raise RpcError(Code.INTERNAL, "cardinality violation: not one response message")
            return answer

    async def close(self) -> None:
        """End all calls and the connection."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for link in list(self.links):
            link.core.lost()
            link.transport.abort()
        self.changed()

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # --- heads and deadlines --------------------------------------------------------------------

    def _block(self, path: str, metadata: Pairs, timeout: float | None) -> bytes:
        """The request head, remembered: equal calls send equal bytes, which servers like too."""
        key = (path, tuple(metadata), timeout)
        block = self._blocks.get(key)
        if block is None:
            block = request_block(
                path,
                self._authority,
                scheme=self._scheme,
                user_agent=self._agent,
                metadata=(*self._metadata, *key[1]),
            )
            if timeout is not None:
                block += timeout_block(timeout)
            if len(self._blocks) >= _BLOCK_CACHE:
                self._blocks.clear()
            self._blocks[key] = block
        return block

    def _left(self, deadline: float | None) -> float | None:
        return None if deadline is None else max(0.0, deadline - self._loop.time())

    def watch(self, rpc: ClientCall, timeout: float) -> None:
        """End the call when its time is over."""
        self._deadlines.add(rpc, self._loop.time(), timeout)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for call in self._deadlines.expire(self._loop.time()):
            call.expire()
        due = self._deadlines.next_due
        if due is not None and self._timer is None:
            self._arm(due)

    # --- the connection -------------------------------------------------------------------------

    def _ready(self) -> ClientConnection | None:
        """The connection, if a call can start on it at once."""
        link = self._link
        if link is None or self._waiters:
            return None
        core = link.core
        return core if core.usable and core.settled and not core.full else None

    async def _connection(self, deadline: float | None, wait: bool) -> ClientConnection:
        while True:
            if self._closed:
                raise RpcError(Code.CANCELLED, "the channel is closed")
            core = self._link.core if self._link is not None else None
            if core is not None and core.usable:
                if core.settled and not core.full:
                    return core
            elif self._connecting is None:
                self._connect(wait)
            await self._wait(deadline)
            if not wait and self._connecting is None and not self._is_usable():
                raise RpcError(Code.UNAVAILABLE, self._failure)

    def _is_usable(self) -> bool:
        return self._link is not None and self._link.core.usable

    async def _wait(self, deadline: float | None) -> None:
        """Until the connection's state has changed."""
        if len(self._waiters) >= _WAITING_CALLS:
            raise RpcError(Code.RESOURCE_EXHAUSTED, "too many calls wait for a connection")
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except TimeoutError:
            text = f"context deadline exceeded while waiting for a connection: {self._failure}"
            raise RpcError(Code.DEADLINE_EXCEEDED, text) from None
        finally:
            if not waiter.done() and waiter in self._waiters:
                self._waiters.remove(waiter)

    def settled(self) -> None:
        """The server has said its SETTINGS, so that it is one."""
        self._backoff.reset()
        self._retry_at = 0.0
        self.changed()

    def lost(self, core: ClientConnection) -> None:
        """A connection has ended. One that never worked is retried with backoff."""
        if not core.settled:
            self._failure = f"connection error: {core.fault or 'the server closed it'}"
            self._retry_at = self._loop.time() + self._backoff.next()
        self.changed()

    def vacant(self) -> None:
        """One more call may be started: the first that waits looks again."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def changed(self) -> None:
        """Something happened to the connection: whoever waits looks again."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _connect(self, wait: bool) -> None:
        pause = self._retry_at - self._loop.time()
        if pause > 0 and not wait:
            raise RpcError(Code.UNAVAILABLE, self._failure)
        self._connecting = self._loop.create_task(self._dial(pause))

    async def _dial(self, pause: float) -> None:
        try:
            if pause > 0:
                await asyncio.sleep(pause)
            async with asyncio.timeout(self._connect_timeout):
                self._link = await self._open()
        except (OSError, TimeoutError) as error:
            self._failure = f"connection error: {str(error) or 'timed out'}"
            self._retry_at = self._loop.time() + self._backoff.next()
        finally:
            self._connecting = None
            self.changed()

    async def _open(self) -> _Link:
        host, port, path = self._where
        link = _Link(self)
        if path is not None:
            await self._loop.create_unix_connection(
                lambda: link, path, ssl=self._ssl, server_hostname=host if self._ssl else None
            )
        else:
            await self._loop.create_connection(lambda: link, host, port, ssl=self._ssl)
        return link


class _Unary:
    """A call with one answer, as a future."""

    __slots__ = ("_answer", "future", "rpc")

    def __init__(
        self, channel: Channel, conn: ClientConnection, block: bytes, timeout: float | None
    ) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answer: bytes | None = None
        self.rpc = conn.start(block, self._on_message, self._on_done)
        if timeout is not None:
            channel.watch(self.rpc, timeout)

    def _on_message(self, message: bytes) -> None:
        if self._answer is not None:
            text = "cardinality violation: expected <EOF>, but received another message"
            self.rpc.cancel(Code.INTERNAL, text)
        self._answer = message

    def _on_done(self, code: int, message: str, trailers: Metadata) -> None:
        if self.future.done():
            return
        if code != 0:
            self.future.set_exception(RpcError(code, message, trailers))
        elif self._answer is None:
            text = "cardinality violation: received no response message"
            self.future.set_exception(RpcError(Code.INTERNAL, text, trailers))
        else:
            self.future.set_result(self._answer)


class StreamCall:
    """A call with streams of messages. Iterate over it, or ``recv`` until None; both raise
    RpcError if the status is not OK. ``head`` and ``trailers`` are the server's metadata, once
    they have come. As a context manager it cancels what is unfinished."""

    def __init__(
        self, channel: Channel, conn: ClientConnection, block: bytes, timeout: float | None
    ) -> None:
        self.head: Metadata = []
        self.trailers: Metadata = []
        self._loop = asyncio.get_running_loop()
        self._messages: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._status: tuple[int, str] | None = None
        self.rpc = conn.start(block, self._on_message, self._on_done)
        self.rpc.on_head = self._on_head
        self.rpc.on_writable = self._on_writable
        if timeout is not None:
            channel.watch(self.rpc, timeout)

    @property
    def done(self) -> bool:
        """Whether the call has its status; messages may still be unread."""
        return self._status is not None

    async def send(self, message: bytes) -> None:
        """Send a message; waits while too much is unsent. RpcError if the call is over."""
        if self._status is not None:
            self._raise()
            raise RpcError(Code.CANCELLED, "the server has already ended the call")
        self.rpc.send(message)
        while self.rpc.backlog > _BACKLOG and self._status is None:
            self._writer = self._loop.create_future()
            await self._writer

    async def end(self) -> None:
        """Half-close: no more messages."""
        self.rpc.end()

    def cancel(self) -> None:
        self.rpc.cancel()

    async def recv(self) -> bytes | None:
        """The next message; None after the last."""
        while not self._messages:
            if self._status is not None:
                self._raise()
                return None
            if self._reader is not None:
                raise RuntimeError("one reader at a time")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._messages.popleft()
        if len(self._messages) <= _UNREAD_MESSAGES // 2:
            self.rpc.resume_reading()
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.recv()) is not None:
            yield message

    async def __aenter__(self) -> StreamCall:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.rpc.cancel()

    def _raise(self) -> None:
        assert self._status is not None
        code, message = self._status
        if code:
            raise RpcError(code, message, self.trailers)

    def _on_head(self, metadata: Metadata) -> None:
        self.head = metadata

    def _on_message(self, message: bytes) -> None:
        self._messages.append(message)
        if len(self._messages) >= _UNREAD_MESSAGES:
            self.rpc.pause_reading()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _on_done(self, code: int, message: str, trailers: Metadata) -> None:
        self._status = (code, message)
        self.trailers = trailers
        for future in (self._reader, self._writer):
            if future is not None and not future.done():
                future.set_result(None)

    def _on_writable(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
