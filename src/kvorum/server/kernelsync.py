"""Syncs a file without a thread: the kernel does it beside the loop, and wakes the loop.

Linux's native asynchronous I/O (io_submit with IOCB_CMD_FDSYNC, since 4.18) does an fdatasync in a
thread of the kernel's and signals an eventfd. A thread of our own has to get the interpreter back
from a busy loop before it can tell of its sync, which takes longer than the sync itself.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, Self

from kvorum.log import get_logger

Synced = Callable[[OSError | None], None]

lg = get_logger()


class KernelSync:
    """One sync at a time. All methods run on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises ImportError, OSError, SystemError or NotImplementedError where it is not to be
        had: another system, a sandbox, fs.aio-max-nr used up, a loop that watches no files.
        """
        self._loop = loop
        self._aio = _native_aio()
        self._context: Any = self._aio.Context(max_requests=1)
        self._fileno: int = self._context.fileno
        self._operation: Any = None
        self._done: Synced | None = None
        self._results: list[int] = []
        loop.add_reader(self._fileno, self._signalled)

    @classmethod
    def open(cls, loop: asyncio.AbstractEventLoop) -> Self | None:
        """None where the kernel or the loop cannot do this."""
        try:
            return cls(loop)
        except (ImportError, OSError, SystemError, NotImplementedError) as error:
            told_unavailable(error)
            return None

    def start(self, fd: int, done: Synced) -> None:
        """Begin an fdatasync; ``done`` gets None, or the error, in a later turn of the loop.

        Raises BlockingIOError if the kernel has no room just now, and another OSError if it will
        not do this at all. Neither says anything about the disk.
        """
        assert self._operation is None, "one sync at a time"
        operation = self._aio.Operation.fdsync(fd)
        # Not `done` itself: what a callback raises is swallowed there.
        operation.set_callback(self._results.append)
        try:
            self._context.submit(operation)
        except OverflowError as error:
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        except (ValueError, SystemError) as error:
            raise OSError(errno.EINVAL, str(error)) from error
        self._operation = operation
        self._done = done

    def wait(self) -> None:
        """Block until what was begun is done and told."""
        poller = select.poll()
        poller.register(self._fileno, select.POLLIN)
        while self._operation is not None:
            poller.poll()
            self._signalled()

    def close(self) -> None:
        """Let go of the kernel's part. Nothing may be under way."""
        if self._context is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fileno)
        self._context = None  # the last reference: its end closes the files

    def _signalled(self) -> None:
        try:
            self._context.poll()
        except BlockingIOError:
            return  # somebody was here before
        self._context.process_events(1)
        if not self._results:
            return
        result, done = self._results.pop(), self._done
        self._operation = self._done = None
        assert done is not None
        done(_error_of(result))


def told_unavailable(error: Exception) -> None:
    """Say that a thread does what `KernelSync` cannot."""
    lg.info("the write-ahead log is synced by a thread", reason=str(error))


def _error_of(result: int) -> OSError | None:
    """``result`` is 0, or the negative error number as an unsigned 64-bit number."""
    if result == 0:
        return None
    number = (1 << 64) - result if result > 0 else -result
    return OSError(number, os.strerror(number))


def _native_aio() -> ModuleType:
    """``caio.linux_aio``, without the package around it, which imports every other way of doing
    this (multiprocessing, io_uring, a tenth of a second in all)."""
    package = find_spec("caio")
    folders = package.submodule_search_locations if package is not None else None
    spec = PathFinder.find_spec("caio.linux_aio", folders) if folders else None
    if spec is None or spec.loader is None:
        raise ImportError("there is no module caio.linux_aio")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
