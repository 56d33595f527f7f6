"""The frame-level client on asyncio, for programs that do many different things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from bench.client import RpcError
from bench.connection import UNAVAILABLE, Body, Connection, Failure
from bench.frames import request_headers, split_messages, stateless_block
from bench.wire import LoadError

MessageType = TypeVar("MessageType", bound=Message)

Done = Callable[[bytes, Failure | None], None]
"""Told the reply's message, or the failure and no message."""


class Stream:
    """A bidirectional stream; each message that comes goes to ``on_message``."""

    def __init__(self, client: AsyncClient, path: str, on_message: Callable[[bytes], None]) -> None:
        self._client = client
        self._on_message = on_message
        self._rest = b""
        self._number = client.connection.start(client.block(path), self)
        client.streams.add(self._number)
        client.flush_soon()

    def data(self, payload: bytes) -> None:
        messages, self._rest = split_messages(self._rest + payload)
        for message in messages:
            self._on_message(message)

    def write(self, request: Message) -> None:
        """Send a message as flow control allows."""
        self._client.connection.write(self._number, request.SerializeToString())
        self._client.flush_soon()

    def cancel(self) -> None:
        """Reset the stream."""
        self._client.streams.discard(self._number)
        self._client.connection.cancel(self._number)
        self._client.flush_soon()


class AsyncClient(asyncio.Protocol):
    """One connection. ``lost`` is empty while all is well, then says what ended it or a stream."""

    def __init__(self, port: int) -> None:
        self.connection = Connection()
        self.streams: set[int] = set()
        self.lost = ""
        self._authority = f"127.0.0.1:{port}"
        self._blocks: dict[str, bytes] = {}
        self._pending: dict[int, tuple[Body, Done]] = {}
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, port: int) -> AsyncClient:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: cls(port), "127.0.0.1", port)
        return client

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def open(self) -> int:
        """Unary calls in flight."""
        return len(self._pending)

    def block(self, path: str) -> bytes:
        """The header block of a method."""
        block = self._blocks.get(path)
        if block is None:
            block = stateless_block(request_headers(path, self._authority))
            self._blocks[path] = block
        return block

    def unary(self, path: str, message: bytes, done: Done) -> None:
        """Send a request; ``done`` is called with the outcome, also when the connection breaks."""
        if self.lost:
            done(b"", Failure(0, UNAVAILABLE, self.lost))
            return
        body = Body()
        stream = self.connection.request(self.block(path), message, body)
        self._pending[stream] = (body, done)
        self.flush_soon()

    async def call(
        self, path: str, request: Message, reply: type[MessageType], *, limit: float = 60.0
    ) -> MessageType:
        """Send a request and wait. Raises RpcError, or TimeoutError after ``limit`` seconds."""
        future: asyncio.Future[bytes] = self._loop.create_future()

        def done(message: bytes, failure: Failure | None) -> None:
            if future.done():
                return
            if failure is None:
                future.set_result(message)
            else:
                future.set_exception(RpcError(failure))

        self.unary(path, request.SerializeToString(), done)
        async with asyncio.timeout(limit):
            return reply.FromString(await future)

    def flush_soon(self) -> None:
        """Send what was queued in this turn of the loop in one write."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and self.connection.out:
            self._transport.write(self.connection.take())

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._flush()

    def data_received(self, data: bytes) -> None:
        for stream in self.connection.feed(data):
            self._end(stream, None)
        for failure in self.connection.failures:
            self._end(failure.stream, failure)
        self.connection.failures.clear()
        if self.connection.out:
            self.flush_soon()

    def _end(self, stream: int, failure: Failure | None) -> None:
        if stream in self.streams:
            self.lost = f"a stream ended: {failure or 'OK'}"
            return
        pending = self._pending.pop(stream, None)
        if pending is None:
            return
        body, done = pending
        self.connection.forget(stream)
        if failure is None:
            messages = body.messages()
            if len(messages) != 1:
                raise LoadError(f"{len(messages)} messages in the reply of a unary call")
            done(messages[0], None)
        else:
            done(b"", failure)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or f"connection lost: {exc or 'closed'}"
        pending, self._pending = self._pending, {}
        for stream, (_, done) in pending.items():
            done(b"", Failure(stream, UNAVAILABLE, self.lost))
