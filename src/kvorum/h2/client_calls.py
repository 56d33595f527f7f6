"""One RPC on the client's side, on an asyncio loop: a single answer as a future, or streams."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from kvorum.errors import Code
from kvorum.h2.client_core import ClientConnection, Metadata
from kvorum.h2.status import RpcError

_UNREAD_MESSAGES: Final = 64
"""Messages a stream holds for a slow reader before it stops the server."""
_BACKLOG: Final = 256 * 1024
"""Bytes of a stream not yet sent before ``send`` waits."""


class UnaryCall:
    """A call with one answer, as a future."""

    __slots__ = ("_answer", "future", "rpc")

    def __init__(self, conn: ClientConnection, block: bytes) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answer: bytes | None = None
        self.rpc = conn.start(block, self._on_message, self._on_done)

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

    def __init__(self, conn: ClientConnection, block: bytes) -> None:
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
