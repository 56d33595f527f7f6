"""The client on an asyncio loop: one server, one connection at a time, calls of all four kinds."""

from __future__ import annotations

import asyncio
import random
import ssl as tls
from collections import deque
from collections.abc import AsyncIterable, Iterable
from typing import Final, cast

from kvorum.errors import Code
from kvorum.h2.client_calls import StreamCall, UnaryCall
from kvorum.h2.client_core import (
    ClientCall,
    ClientConnection,
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
            call = UnaryCall(conn, self._block(path, metadata, timeout))
            self._watch(call.rpc, timeout)
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
        call = StreamCall(conn, self._block(path, metadata, timeout))
        self._watch(call.rpc, timeout)
        return call

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

    def _watch(self, rpc: ClientCall, timeout: float | None) -> None:
        """End the call when its time is over."""
        if timeout is not None:
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
