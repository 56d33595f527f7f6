"""Callers that a coroutine waits for: proposals and linearizable reads where speed is no matter."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from kvorum.errors import Code, EtcdError
from kvorum.server.proposer import Caller
from kvorum.server.reads import ReadGate


class RequestFailed(Exception):
    """A request failed with a status that is none of etcd's errors."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = Code(code)


def error_of(code: int, message: str) -> Exception:
    """The error that was told to a caller as code and text."""
    known = EtcdError.by_message.get(message)
    return known() if known is not None else RequestFailed(code, message)


class Awaited:
    """A caller whose answer is awaited, once::

        answer = Awaited(loop)
        proposer.propose("alarm", message, request, answer)
        body = await answer

    Awaiting it raises an `EtcdError`, or RequestFailed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[bytes] = loop.create_future()

    def reply(self, message: bytes) -> None:
        if not self._future.done():
            self._future.set_result(message)

    def fail(self, code: int, message: str) -> None:
        if not self._future.done():
            self._future.set_exception(error_of(code, message))

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._future.__await__()


async def until_fresh(reads: ReadGate, loop: asyncio.AbstractEventLoop) -> None:
    """Return once this member's state is as new as the cluster's was at the call.

    Raises:
        EtcdError: there was no leader in time, or the member stops.
    """
    answer = Awaited(loop)
    reads.read(_just_reply, None, answer)
    await answer


def _just_reply(request: object, caller: Caller) -> None:
    del request
    caller.reply(b"")
