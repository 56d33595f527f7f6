"""What the tests of this folder share: bounded runs, and servers that say what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
    """Run a test's coroutine on uvloop, for a bounded time."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await work

    return uvloop.run(bounded())


async def until(probe: Callable[[], object], every: float = 0.005) -> None:
    """Wait for a state that announces itself by no event; `run` bounds it."""
    while not probe():  # noqa: ASYNC110
        await asyncio.sleep(every)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """The URL of a server that serves its connections so."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class RawServer:
    """Answers each request with the next of ``replies``, raw bytes; None closes the connection,
    ``...`` keeps it without an answer. A reply that ends with ``CLOSE`` is the last."""

    CLOSE = b"<close>"

    def __init__(self, *replies: bytes | Any | None) -> None:
        self.replies = list(replies)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        self.bodies.append(await self._body(head, reader))
        reply = self.replies.pop(0)
        if reply is None:
            return False
        if reply is ...:
            await reader.read()
            return False
        last = reply.endswith(self.CLOSE)
        writer.write(reply.removesuffix(self.CLOSE))
        await writer.drain()
        return not last

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            parts = []
            while size := int(await reader.readline(), 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
            return b"".join(parts)
        _, found, rest = lower.partition(b"content-length: ")
        return await reader.readexactly(int(rest.split()[0])) if found else b""


@asynccontextmanager
async def raw_server(*replies: bytes | Any | None) -> AsyncIterator[RawServer]:
    site = RawServer(*replies)
    async with serving(site.serve) as site.url:
        yield site
