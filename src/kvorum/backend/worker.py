"""The thread in which commits run, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs one piece of work at a time and tells the loop its result, or what it raised.

    LMDB wants a write transaction to begin and end in one thread, and the loop must not wait for
    the disk.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[T | BaseException], None],
    ) -> None:
        self._loop = loop
        self._done = done
        self._queue: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._result: T | BaseException | None = None
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> None:
        """At most one at a time: the next after `done` was called."""
        assert self._result is None, "a result waits to be taken"
        self._queue.put(work)

    def stop(self) -> None:
        """Let the running work end, and report its result here rather than through the loop."""
        self._queue.put(None)
        self._thread.join()
        self._report()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                self._result = work()
            except BaseException as error:  # whatever it is, the loop has to hear of it
                self._result = error
            with contextlib.suppress(RuntimeError):  # the loop is closed; `stop` reports
                self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        result, self._result = self._result, None
        if result is not None:
            self._done(result)
