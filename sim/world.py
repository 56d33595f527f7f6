"""Time, and what happens in it: everything that a simulation does is an event of one queue.

Nothing here looks at a real clock, and all chance comes from one generator, so that a seed gives
the same run every time.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sim.process import Process

EPOCH: Final = 1_700_000_000.0
"""The wall clock's time at the start of every run."""


class Handle:
    """An event that waits. ``process`` None: it belongs to the world itself."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when", "process")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        process: Process | None,
        when: float,
        context: Context | None = None,
    ) -> None:
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._context = context
        self._when = when
        self.process = process

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        """In the loop's own time, as asyncio wants it."""
        return self._when if self.process is None else self.process.local(self._when)

    def __repr__(self) -> str:
        return f"<Handle {self._callback!r}{' cancelled' if self._cancelled else ''}>"


class World:
    """The clock and the queue. ``now`` is in seconds from the start of the run.

    ``current`` is the process whose code is running. ``after_turn`` is called with a process after
    each of its events. ``failures`` gets whatever code let escape. ``processes`` keeps all that
    there were: were an ended one's tasks collected, what they do at their end would happen in the
    middle of something else.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.current: Process | None = None
        self.events = 0
        self.failures: list[str] = []
        self.processes: list[Process] = []
        self.after_turn: Callable[[Process], None] = lambda process: None
        self._timed: list[tuple[float, int, Handle]] = []
        self._ready: deque[Handle] = deque()
        self._order = 0

    def fork(self, name: str) -> random.Random:
        """A generator of its own for a part, so that its draws do not move those of the others."""
        return random.Random(f"{self.random.random()} {name}")

    # Scheduling

    def soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        process: Process | None = None,
        context: Context | None = None,
    ) -> Handle:
        """At this very moment, after what was asked for before."""
        handle = Handle(callback, args, process, self.now, context)
        self._ready.append(handle)
        return handle

    def after(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        process: Process | None = None,
        context: Context | None = None,
    ) -> Handle:
        """``delay`` seconds from now."""
        when = self.now + max(0.0, delay)
        handle = Handle(callback, args, process, when, context)
        self._order += 1
        heappush(self._timed, (when, self._order, handle))
        return handle

    def first(self, handles: Sequence[Handle]) -> None:
        """At this very moment, before all that waits."""
        self._ready.extendleft(reversed(handles))

    # Running

    def run_until(self, when: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that happens before ``when``, or until ``stop``."""
        while not stop():
            if self._ready:
                self.dispatch(self._ready.popleft())
            elif self._timed and self._timed[0][0] <= when:
                at, _, handle = heappop(self._timed)
                self.now = max(self.now, at)
                self.dispatch(handle)
            else:
                self.now = max(self.now, when)
                return

    def dispatch(self, handle: Handle) -> None:
        """Let an event happen."""
        process = handle.process
        if handle._cancelled or (process is not None and not process.alive):
            return
        if process is not None and process.paused_until > self.now:
            process.held.append(handle)
            return
        self.events += 1
        if process is None:
            handle._callback(*handle._args)
            return
        with_loop(process, self)
        try:
            if handle._context is None:
                handle._callback(*handle._args)
            else:
                handle._context.run(handle._callback, *handle._args)
        except Exception as error:
            process.loop.report(f"an exception in a callback: {error!r}", error)
        finally:
            without_loop(self)
        if process.alive:
            self.after_turn(process)


def with_loop(process: Process, world: World) -> None:
    """What runs from here on is code of ``process``."""
    world.current = process
    asyncio._set_running_loop(process.loop)


def without_loop(world: World) -> None:
    """What runs from here on is code of nobody."""
    world.current = None
    asyncio._set_running_loop(None)
