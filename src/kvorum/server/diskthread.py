"""A thread for disk calls that block, run one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

Work = Callable[[], Any]
Done = Callable[[Any], None]


class Disk(Protocol):
    """Whoever runs work that blocks, in the order of submission, and tells of its result."""

    def submit(self, work: Work, done: Done) -> None: ...

    @property
    def idle(self) -> bool: ...

    def close(self) -> None: ...


class DiskThread:
    """Runs work in the order of submission and hands each result to the loop.

    A thread of its own, and not an executor: it costs one queue put and one wake-up of the loop
    per batch, with no future in between.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[tuple[Work, Done] | None] = SimpleQueue()
        self._worker = Thread(target=self._run, name=name, daemon=True)
        self._worker.start()
        self._unreported = 0

    def submit(self, work: Work, done: Done) -> None:
        """Run ``work`` in the thread, then ``done`` on the loop with its result, or with the
        exception that it raised.
        """
        self._unreported += 1
        self._queue.put((work, done))

    @property
    def idle(self) -> bool:
        """Whether all that was submitted is done and reported."""
        return self._unreported == 0

    def _report(self, done: Done, result: Any) -> None:
        self._unreported -= 1
        done(result)

    def close(self) -> None:
        """Finish what was submitted, and end the thread. Results still unreported are lost."""
        self._queue.put(None)
        self._worker.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            try:
                result = work()
            except BaseException as error:  # whatever it is, the loop has to hear of it
                result = error
            if self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(self._report, done, result)
