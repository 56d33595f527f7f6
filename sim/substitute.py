"""Puts the simulated machine in the place of the real one in every module of Kvorum.

Members are not written for a simulation: they import ``os``, ``lmdb`` or a thread class like any
program. So whatever global of a module *is* one of these is replaced while a simulation runs, by
identity and wherever it is: a module that is new tomorrow needs nothing to be done for it.
"""

from __future__ import annotations

import concurrent.futures
import errno
import fcntl
import os
import pathlib
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import lmdb

from kvorum.api import watch
from kvorum.backend import image, worker
from kvorum.server import diskthread, kernelsync
from kvorum.wal import WAL, encoder, log
from sim import image as sim_image
from sim.mdb import Lmdb
from sim.process import Blocking, Process
from sim.system import System
from sim.world import World

SEGMENT_SIZE: Final = 48 * 1024
"""Of the log: small enough that every run cuts and purges segments."""

BACKLOG: Final = 600
"""Unread bytes of a watch stream from which on its watches wait: so that slow clients are met."""
_REAL: Final = ("kvorum.testing", "kvorum.h2", "kvorum.log", "kvorum.logsink", "kvorum.cli")
"""Modules that are none of a member's, or that look at the real machine to no effect."""


@contextmanager
def simulated(world: World) -> Iterator[System]:
    """All of Kvorum runs on ``world`` meanwhile. One at a time."""
    system = System(world)
    stand_ins = _stand_ins(world, system)
    undo: list[tuple[dict[str, Any], str, Any]] = []
    opened: list[dict[str, Any]] = []
    segment_sizes = _segment_sizes()
    try:
        for name, module in sorted(sys.modules.items()):
            if name.startswith("kvorum.") and not name.startswith(_REAL):
                undo += _replace(vars(module), stand_ins)
                opened.append(vars(module))
        for names in opened:
            names["open"] = system.open_file  # hides the builtin
        for defaults in segment_sizes:
            defaults["segment_size"] = SEGMENT_SIZE
        undo.append((vars(watch), "BACKLOG", watch.BACKLOG))
        vars(watch)["BACKLOG"] = BACKLOG
        yield system
    finally:
        for defaults in segment_sizes:
            defaults["segment_size"] = encoder.SEGMENT_SIZE
        for names in opened:
            del names["open"]
        for names, name, real in undo:
            names[name] = real


def _stand_ins(world: World, system: System) -> dict[int, tuple[object, object]]:
    """What replaces what, by the identity of the real thing."""
    pairs: list[tuple[object, object]] = [
        (os, system.os),
        (fcntl, system.fcntl),
        (shutil, system.shutil),
        (time, system.time),
        (threading, system.threading),
        (lmdb, Lmdb(system)),
        (pathlib.Path, system.Path),
        (time.perf_counter, system.time.perf_counter),
        (time.monotonic, system.time.monotonic),
        (threading.Lock, system.threading.Lock),
        (threading.Thread, system.threading.Thread),
        (threading.Event, system.threading.Event),
        (random.SystemRandom, _randoms(world)),
        (concurrent.futures.ThreadPoolExecutor, Executor),
        (diskthread.DiskThread, _disk_threads(world)),
        (kernelsync.KernelSync, _kernel_syncs(world, system)),
        (worker.Worker, _workers(world)),
        (image.Image, sim_image.Image),
        (image.is_image, sim_image.is_image),
        (image.image_value, sim_image.image_value),
    ]
    return {id(real): (real, stand_in) for real, stand_in in pairs}


def _replace(
    names: dict[str, Any], stand_ins: dict[int, tuple[object, object]]
) -> list[tuple[dict[str, Any], str, Any]]:
    found = [(name, value) for name, value in names.items() if id(value) in stand_ins]
    for name, value in found:
        names[name] = stand_ins[id(value)][1]
    return [(names, name, value) for name, value in found]


def _segment_sizes() -> list[dict[str, Any]]:
    """Where the size of a log's segments is a default."""
    wal: Any = WAL
    functions = [wal.__init__, wal.create.__func__, wal.open.__func__, log.open_log]
    return [function.__kwdefaults__ for function in functions]


def _current(world: World) -> Process:
    assert world.current is not None, "made by nobody"
    return world.current


def _randoms(world: World) -> Callable[[], random.Random]:
    return lambda: _current(world).random


class Executor:
    """``ThreadPoolExecutor``: for the loop it only stands for a name; what is submitted to it
    directly is done at once."""

    def __init__(self, workers: int = 1, thread_name_prefix: str = "") -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


def _disk_threads(world: World) -> type:
    class DiskThread:
        """`kvorum.server.diskthread.DiskThread`."""

        def __init__(self, name: str, loop: object) -> None:
            process = _current(world)
            self._thread = Blocking(process, process.sync_cost)
            self._unreported = 0

        def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
            self._unreported += 1

            def report(result: Any) -> None:
                self._unreported -= 1
                done(result)

            self._thread.submit(work, report)

        @property
        def idle(self) -> bool:
            return self._unreported == 0

        def close(self) -> None:
            self._thread.finish()

    return DiskThread


def _kernel_syncs(world: World, system: System) -> type:
    class KernelSync:
        """`kvorum.server.kernelsync.KernelSync`."""

        def __init__(self) -> None:
            process = _current(world)
            self._kernel = Blocking(process, process.sync_cost)
            self._random = process.random
            self._crowded = process.random.choice([0.0, 0.0, 0.05])
            self._fickle = process.random.choice([0.0, 0.0, 0.005])

        @classmethod
        def open(cls, loop: object) -> KernelSync | None:
            """Not every machine has it."""
            return cls() if _current(world).random.random() < 0.7 else None

        def start(self, fd: int, done: Callable[[OSError | None], None]) -> None:
            """It may have no room just now, or not do it any more."""
            assert not self._kernel.pending, "one sync at a time"
            if self._random.random() < self._crowded:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if self._random.random() < self._fickle:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self._kernel.submit(lambda: system.os.fdatasync(fd), done)

        def wait(self) -> None:
            self._kernel.drain()

        def close(self) -> None:
            pass

    return KernelSync


def _workers(world: World) -> type:
    class Worker:
        """`kvorum.backend.worker.Worker`."""

        def __class_getitem__(cls, item: object) -> type:
            return cls

        def __init__(self, name: str, loop: object, done: Callable[[Any], None]) -> None:
            process = _current(world)
            self._thread = Blocking(process, process.sync_cost)
            self._done = done

        def submit(self, work: Callable[[], Any]) -> None:
            self._thread.submit(work, self._done)

        def stop(self) -> None:
            self._thread.drain()

    return Worker
