"""One run of one member: its event loop, its threads, its clock, its open files.

A process ends at any moment, and then nothing of it ever runs again: its events are passed over,
its tasks are kept and never woken, and the blocking calls it was in are carried out only in part.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sim.disk import Disk, OpenFile, PowerCut
from sim.world import EPOCH, Handle, World, with_loop, without_loop

if TYPE_CHECKING:
    from sim.calls import ClientCall

T = TypeVar("T")

MAX_CUT: Final = 12
"""File operations after which a blocking call that was cut off may have stopped."""
SYNC_COST: Final = 0.002
WRITE_COST: Final = 0.0001
STALL: Final = 0.005
"""Seconds that a write takes when the system's memory is full of what waits for the disk."""
EXECUTOR_COST: Final = 0.003


class Clock:
    """A clock that is off by ``offset`` seconds and gains ``drift`` seconds a second."""

    def __init__(self, offset: float = 0.0, drift: float = 0.0) -> None:
        self.offset = offset
        self.rate = 1.0 + drift

    def local(self, now: float) -> float:
        """What it shows at a moment of the world."""
        return self.offset + now * self.rate

    def span(self, seconds: float) -> float:
        """The world's seconds in which it goes on by ``seconds``."""
        return seconds / self.rate


class Blocking:
    """A thread that does one piece of work after the other.

    A piece is carried out at the moment when it ends; were the process to end before, it is
    carried out up to some file operation (`Process.end`).
    """

    def __init__(self, process: Process, cost: Callable[[], float]) -> None:
        self._process = process
        self._cost = cost
        self._queue: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._busy = False
        process.threads.append(self)

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """``done`` gets the result or the exception, on the loop."""
        self._queue.append((work, done))
        if not self._busy:
            self._begin()

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def finish(self) -> None:
        """Do all that was submitted now, and report nothing."""
        while self._queue:
            work, _ = self._queue.popleft()
            _outcome(work)

    def drain(self) -> None:
        """Do all that was submitted now, and report it."""
        while self._queue:
            work, done = self._queue.popleft()
            done(_outcome(work))

    def _begin(self) -> None:
        self._busy = True
        self._process.world.after(self._cost(), self._end, process=self._process)

    def _end(self) -> None:
        if not self._queue:  # `finish` was faster
            self._busy = False
            return
        work, done = self._queue.popleft()
        result = _outcome(work)
        self._process.world.soon(done, result, process=self._process)
        self._busy = bool(self._queue)
        if self._busy:
            self._begin()

    def cut(self, random: Random) -> None:
        """The process has ended in the middle of this."""
        if self._busy and self._queue:
            self._process.disk.stop_after(random.randrange(MAX_CUT))
            _outcome(self._queue[0][0])


def _outcome(work: Callable[[], T]) -> T | BaseException:
    try:
        return work()
    except (Exception, PowerCut) as error:
        return error


class Process:
    """See the module. ``name`` is for traces; ``disk`` outlives the process."""

    def __init__(self, world: World, name: str, disk: Disk, clock: Clock) -> None:
        self.world = world
        self.name = name
        self.disk = disk
        self.clock = clock
        self.alive = True
        self.paused_until = 0.0
        self.held: list[Handle] = []
        """What waits for the end of a pause, in order."""
        self.random = world.fork(name)
        self.stalls = self.random.choice([0.0, 0.01, 0.2])
        """The share of its writes that wait for the disk."""
        self.files: dict[int, OpenFile] = {}
        self.threads: list[Blocking] = []
        self.calls: dict[ClientCall, None] = {}
        self.loop = Loop(self)  # type: ignore[abstract] # at run time nothing is
        world.processes.append(self)

    def local(self, moment: float) -> float:
        return self.clock.local(moment)

    def wall_time(self) -> float:
        return EPOCH + self.clock.local(self.world.now)

    def sync_cost(self) -> float:
        """Seconds that a sync of its disk takes."""
        return self.disk.slowness * self.random.expovariate(1 / SYNC_COST)

    def write_cost(self) -> float:
        """Seconds that a write takes."""
        stall = STALL if self.random.random() < self.stalls else 0.0
        return self.disk.slowness * WRITE_COST + stall

    def run(self, work: Callable[[], T]) -> T:
        """Run something as this process, from outside."""
        assert self.alive, f"{self.name} has ended"
        with_loop(self, self.world)
        try:
            return work()
        finally:
            without_loop(self.world)

    def run_event(self, work: Callable[[], object]) -> None:
        """Have something happen here now, as an event of its own."""
        if self.alive:
            self.world.dispatch(Handle(work, (), self, self.world.now))

    def pause(self, seconds: float) -> None:
        """Stand still; what happens meanwhile happens here afterwards, in order."""
        self.paused_until = max(self.paused_until, self.world.now + seconds)
        self.world.after(seconds, self._wake)

    def resume(self) -> None:
        """End a pause before its time."""
        self.paused_until = self.world.now
        self._wake()

    def _wake(self) -> None:
        if self.world.now >= self.paused_until:  # not if the pause has become longer since
            held, self.held = self.held, []
            self.world.first(held)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.run(lambda: self.loop.create_task(work))

    def end(self, *, power_cut: bool) -> None:
        """End it now: by a kill, or together with the power, so that what was not synced is lost
        in part."""
        assert self.alive, f"{self.name} has ended"
        with_loop(self, self.world)
        try:
            for thread in self.threads:
                thread.cut(self.random)
        finally:
            without_loop(self.world)
        self.alive = False
        self.disk.release_locks()
        self.disk.stop_after(None)
        self.files.clear()
        if power_cut:
            self.disk.cut_power(self.random)


class Future(asyncio.Future[Any]):
    """One whose place in a set is the same in every run: who is woken first depends on it."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop=loop)
        self._number = loop.number()

    def __hash__(self) -> int:
        return self._number


class Task(asyncio.Task[Any]):
    """See `Future`."""

    def __init__(self, loop: Loop, work: Coroutine[Any, Any, Any], name: str | None) -> None:
        self._number = loop.number()  # the base class puts it into a set
        super().__init__(work, loop=loop, name=name)

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.AbstractEventLoop):
    """asyncio's loop, as far as members use it, on the world's time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self.tasks: set[asyncio.Task[Any]] = set()
        self._numbers = 0
        self._executor = Blocking(process, lambda: process.random.expovariate(1 / EXECUTOR_COST))

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def time(self) -> float:
        return self._process.clock.local(self._world.now)

    def call_soon(  # type: ignore[override] # a handle of ours is as good
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        return self._world.soon(callback, *args, process=self._process, context=context)

    def call_soon_threadsafe(  # type: ignore[override] # a handle of ours is as good
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        return self._world.soon(callback, *args, process=self._process, context=context)

    def call_later(  # type: ignore[override] # a handle of ours is as good
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        span = self._process.clock.span(delay)
        return self._world.after(span, callback, *args, process=self._process, context=context)

    def call_at(  # type: ignore[override] # a handle of ours is as good
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return Future(self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[T]:
        """Kept until it is done: were one that sleeps for ever collected, its ``finally`` would
        run, after the end of its process and whenever the collector likes."""
        task = Task(self, coro, name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()

        def done(result: Any) -> None:
            if future.cancelled():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        self._executor.submit(lambda: func(*args), done)
        return future

    def report(self, what: str, error: BaseException | None = None) -> None:
        """Something went wrong that nobody has caught."""
        text = f"{self._process.name}: {what}"
        if error is not None:
            text += "\n" + "".join(traceback.format_exception(error))
        self._world.failures.append(text)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._process.alive:
            self.report(str(context.get("message")), context.get("exception"))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._process.alive

    def is_closed(self) -> bool:
        return not self._process.alive
