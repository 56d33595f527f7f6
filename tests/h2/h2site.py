"""A real server on a free port, with the usual methods, for tests that need sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvloop

from kvorum.h2 import Call, GrpcServer, HttpRequest, HttpResponse, Limits, Method, chunks

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
    """Run a test's coroutine on uvloop, for a bounded time."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await work

    return uvloop.run(bounded())


class Site:
    """``Now`` echoes at once, ``Later`` in the next turn of the loop, ``Hold`` keeps its calls,
    ``Echo`` streams back what it gets, ``Count`` sends as many messages as it is told, no faster
    than they are read, ``Sum`` adds up what it gets, ``Fail`` fails."""

    def __init__(self) -> None:
        self.held: list[Call] = []
        self.arrived = asyncio.Event()
        self.cancelled: list[Call] = []
        self.requests: list[HttpRequest] = []
        self.reports: list[BaseException] = []
        self.largest_backlog = 0
        self.largest_chunk = 0
        self.lost_uploads = 0
        self.methods = {
            "/t.S/Now": Method(lambda call, message: call.reply(message)),
            "/t.S/Later": Method(self._later),
            "/t.S/Hold": Method(self._hold),
            "/t.S/Fail": Method(lambda call, message: call.fail(9, "no: " + message.decode())),
            "/t.S/Echo": Method(self._echo, streaming=True),
            "/t.S/Count": Method(self._count, streaming=True),
            "/t.S/Sum": Method(self._sum, streaming=True),
        }
        self.server: GrpcServer
        self.port = 0

    def _later(self, call: Call, message: bytes) -> None:
        asyncio.get_running_loop().call_soon(call.reply, message)

    def _hold(self, call: Call, message: bytes) -> None:
        self.held.append(call)
        call.on_cancel = lambda: self.cancelled.append(call)
        self.arrived.set()

    def _echo(self, call: Call) -> None:
        call.on_message = call.send
        call.on_end = call.finish
        call.on_cancel = lambda: self.cancelled.append(call)

    def _sum(self, call: Call) -> None:
        numbers: list[int] = []
        call.on_message = lambda message: numbers.append(int(message))
        call.on_end = lambda: call.reply(b"%d" % sum(numbers))

    def _count(self, call: Call) -> None:
        left = 0
        size = 0

        def more() -> None:
            nonlocal left
            while left and call.backlog < 100_000:
                left -= 1
                call.send(b"%d" % left + b" " * size)
                self.largest_backlog = max(self.largest_backlog, call.backlog)
            if not left:
                call.finish()

        def start(message: bytes) -> None:
            nonlocal left, size
            left, size = map(int, message.split())
            more()

        call.on_message = start
        call.on_writable = more

    def http(self, request: HttpRequest) -> HttpResponse | Coroutine[Any, Any, HttpResponse]:
        self.requests.append(request)
        if request.path == "/wait":
            return self._wait(request)
        if request.path == "/grow":
            return HttpResponse(200, self._grow(int(request.query or 3)))
        if request.path == "/break":
            raise RuntimeError("broken handler")
        if request.path == "/inject":
            return HttpResponse(200, b"", [("x-a", "1\r\nx-b: 2")])
        if request.source is not None:
            return self._upload(request)
        text = f"{request.method} {request.path} {request.version} {len(request.body)}\n"
        return HttpResponse(200, text.encode(), [("content-type", "text/plain")])

    async def _wait(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        if request.query == "break":
            raise RuntimeError("broken handler")
        return HttpResponse(200, b"waited\n")

    async def _upload(self, request: HttpRequest) -> HttpResponse:
        assert request.source is not None
        size = 0
        try:
            async for chunk in chunks(request.source):
                size += len(chunk)
                self.largest_chunk = max(self.largest_chunk, len(chunk))
                await asyncio.sleep(0)
        except ConnectionResetError:
            self.lost_uploads += 1
            raise
        return HttpResponse(200, b"%d\n" % size)

    async def _grow(self, count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            await asyncio.sleep(0)
            if count == 13:
                raise RuntimeError("broken body")
            yield b"%d\n" % number


@asynccontextmanager
async def serving(limits: Limits | None = None, **listen: Any) -> AsyncIterator[Site]:
    """The site, listening; closed at the end."""
    site = Site()
    site.server = GrpcServer(
        site.methods,
        site.http,
        limits,
        report=site.reports.append,
        wants_source=lambda request: request.path == "/upload",
    )
    if "path" in listen or "sock" in listen:
        await site.server.listen(**listen)
    else:
        listener = await site.server.listen("127.0.0.1", 0, **listen)
        site.port = listener.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        site.server.close()


async def until(condition: Any) -> None:
    """Wait until the condition holds; the test's time bounds it."""
    while not condition():  # noqa: ASYNC110 - counters and sizes of the server have no event
        await asyncio.sleep(0.002)
