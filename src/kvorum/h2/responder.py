"""Runs the HTTP handler for a request and carries its response to the ``Answer``."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Final

from kvorum.h2.http import Answer, BodySource, HttpHandler, HttpRequest, HttpResponse, text_response

_UNSAFE: Final = re.compile("[\r\n\0]")
_PAUSE_ABOVE: Final = 256 * 1024  # bytes of a growing answer that may wait for the client


class Responder:
    """``report`` gets exceptions that the handler lets out; the client gets 500."""

    def __init__(
        self, handler: HttpHandler | None, report: Callable[[BaseException], None] | None
    ) -> None:
        self._handler = handler
        self._report = report
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def run(self, answer: Answer, request: HttpRequest) -> None:
        """Answer at once where the handler does; in a task where it has to wait."""
        if self._handler is None:
            self._send(answer, text_response(404, "404 page not found"))
            return
        try:
            result = self._handler(request)
        except Exception as error:
            self._failed(answer, error)
            return
        if isinstance(result, HttpResponse):
            self._send(answer, result)
        else:
            self._spawn(answer, self._await(answer, result))

    def _spawn(self, answer: Answer, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        answer.on_cancel = task.cancel  # type: ignore[assignment]

    def _failed(self, answer: Answer, error: Exception) -> None:
        if self._report is not None:
            self._report(error)
        self._send(answer, text_response(500, "Internal Server Error"))

    async def _await(self, answer: Answer, result: Awaitable[HttpResponse]) -> None:
        try:
            response = await result
        except ConnectionError:
            answer.abort()  # the client is gone; nobody is to blame
            return
        except Exception as error:
            self._failed(answer, error)
            return
        body = response.body
        if isinstance(body, AsyncIterator):
            await self._stream(answer, response, body)
        else:
            answer.on_cancel = None
            self._send(answer, response)

    def _send(self, answer: Answer, response: HttpResponse) -> None:
        body = response.body
        if isinstance(body, AsyncIterator):
            self._spawn(answer, self._stream(answer, response, body))
            return
        if any(_UNSAFE.search(name + value) for name, value in response.headers):
            self._failed(answer, ValueError("a response header with a line break"))
            return
        if not isinstance(body, bytes):
            answer.begin(response.status, _with_date(response), None)
            body(answer)
            return
        answer.begin(response.status, _with_date(response), len(body))
        answer.write(body)
        answer.end()

    async def _stream(
        self, answer: Answer, response: HttpResponse, body: AsyncIterator[bytes]
    ) -> None:
        answer.begin(response.status, _with_date(response), None)
        writable = asyncio.Event()
        answer.on_writable = writable.set
        burst = 0
        try:
            async for chunk in body:
                answer.write(chunk)
                burst += len(chunk)
                if answer.backlog > _PAUSE_ABOVE:
                    writable.clear()
                    await writable.wait()
                elif burst > _PAUSE_ABOVE:
                    # A body that never waits would keep the loop from writing any of it.
                    burst = 0
                    await asyncio.sleep(0)
        except Exception as error:
            if self._report is not None:
                self._report(error)
            answer.abort()
            return
        answer.end()


async def chunks(source: BodySource) -> AsyncIterator[bytes]:
    """A request's body as it comes; ConnectionResetError if its end never does."""
    ready = asyncio.Event()
    source.on_ready = ready.set
    while True:
        ready.clear()
        data = source.read()
        if data:
            yield data
        elif source.lost:
            raise ConnectionResetError("the client left within its request")
        elif source.ended:
            return
        else:
            await ready.wait()


def _with_date(response: HttpResponse) -> list[tuple[str, str]]:
    return [*response.headers, ("date", formatdate(time.time(), usegmt=True))]
