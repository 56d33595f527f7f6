"""Syncs by the kernel, on real files and real loops; where there are none, what is said."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.need import need

from kvorum.server import kernelsync
from kvorum.server.kernelsync import KernelSync

Story = Callable[[KernelSync, int], Awaitable[None]]


def run(runner: Callable[[Any], None], folder: Path, story: Story) -> None:
    async def whole() -> None:
        kernel = KernelSync.open(asyncio.get_running_loop())
        need(kernel is not None, "no native asynchronous I/O here")
        assert kernel is not None
        fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
        try:
            await story(kernel, fd)
        finally:
            kernel.close()
            kernel.close()  # once more does nothing
            os.close(fd)

    runner(whole())


runners = pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])


@runners
def test_syncs_one_after_the_other(runner: Any, tmp_path: Path) -> None:
    async def story(kernel: KernelSync, fd: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            os.write(fd, b"x" * 5000)
            told = loop.create_future()
            kernel.start(fd, told.set_result)
            assert not told.done()
            assert await asyncio.wait_for(told, 10) is None

    run(runner, tmp_path, story)


@runners
def test_the_next_may_begin_as_soon_as_one_is_told(runner: Any, tmp_path: Path) -> None:
    async def story(kernel: KernelSync, fd: int) -> None:
        left, done = 20, asyncio.Event()

        def again(error: OSError | None) -> None:
            nonlocal left
            assert error is None
            left -= 1
            if left:
                kernel.start(fd, again)
            else:
                done.set()

        kernel.start(fd, again)
        await asyncio.wait_for(done.wait(), 10)

    run(runner, tmp_path, story)


@runners
def test_a_wait_blocks_until_it_is_told(runner: Any, tmp_path: Path) -> None:
    async def story(kernel: KernelSync, fd: int) -> None:
        told: list[OSError | None] = []
        kernel.wait()  # for nothing
        kernel.start(fd, told.append)
        kernel.wait()
        assert told == [None]
        await asyncio.sleep(0)  # the loop finds nothing left
        assert told == [None]

    run(runner, tmp_path, story)


def test_a_file_that_cannot_be_synced_is_refused(tmp_path: Path) -> None:
    async def story(kernel: KernelSync, fd: int) -> None:
        reader, writer = os.pipe()
        with pytest.raises(OSError, match="EINVAL"):
            kernel.start(writer, lambda error: pytest.fail("told"))
        os.close(reader)
        os.close(writer)
        with pytest.raises(OSError, match="EBADF"):
            kernel.start(writer, lambda error: pytest.fail("told"))
        told: list[OSError | None] = []
        kernel.start(fd, told.append)  # it goes on with others
        kernel.wait()
        assert told == [None]

    run(asyncio.run, tmp_path, story)


def test_a_negative_result_is_the_error(tmp_path: Path) -> None:
    """The library tells it as a number without a sign; were it to change that, too."""

    async def story(kernel: KernelSync, fd: int) -> None:
        for result in (2**64 - 5, -5):
            told: list[OSError | None] = []
            kernel.start(fd, told.append)
            kernel._operation.set_callback(lambda _, result=result: kernel._results.append(result))
            kernel.wait()
            (error,) = told
            assert error is not None
            assert (error.errno, error.strerror) == (5, "Input/output error")

    run(asyncio.run, tmp_path, story)


class Full:
    """A kernel that has no room."""

    fileno = 0

    def submit(self, operation: object) -> int:
        raise OverflowError("Insufficient resources are available to queue any iocbs [EAGAIN]")


def test_a_kernel_without_room_is_told_apart(tmp_path: Path) -> None:
    async def story(kernel: KernelSync, fd: int) -> None:
        context, kernel._context = kernel._context, Full()
        with pytest.raises(BlockingIOError):
            kernel.start(fd, lambda error: pytest.fail("told"))
        kernel._context = context

    run(asyncio.run, tmp_path, story)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    async def story(kernel: KernelSync, fd: int) -> None:
        loop = asyncio.get_running_loop()
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            other = KernelSync.open(loop)
            assert other is not None
            other.start(fd, lambda error: None)
            other.wait()
            other.close()
        gc.collect()
        assert sorted(os.listdir("/proc/self/fd")) == before

    run(asyncio.run, tmp_path, story)


def test_a_loop_that_is_gone_is_no_reason_not_to_close(tmp_path: Path) -> None:
    loop = uvloop.new_event_loop()
    kernel = KernelSync.open(loop)
    need(kernel is not None, "no native asynchronous I/O here")
    assert kernel is not None
    loop.close()
    kernel.close()


class NoRoom:
    """A module whose kernel has used up fs.aio-max-nr."""

    @staticmethod
    def Context(max_requests: int) -> object:
        raise SystemError(errno.EAGAIN, "Resource temporarily unavailable")


class NoReaders(asyncio.SelectorEventLoop):
    def add_reader(self, fd: Any, *_: object) -> None:
        if not isinstance(fd, int):
            return super().add_reader(fd, *_)  # its own
        raise NotImplementedError("files are not watched")


@pytest.mark.parametrize(
    ("lacks", "reason"),
    [
        ("the library", "no module caio.linux_aio"),
        ("the C module", "no module caio.linux_aio"),
        ("room", "Resource temporarily unavailable"),
        ("readers", "files are not watched"),
    ],
)
def test_where_it_is_not_to_be_had(
    lacks: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(kernelsync, "told_unavailable", lambda error: reasons.append(str(error)))
    loop = NoReaders() if lacks == "readers" else asyncio.new_event_loop()
    if lacks == "the library":
        monkeypatch.setattr(kernelsync, "find_spec", lambda name: None)
    elif lacks == "the C module":
        monkeypatch.setattr(kernelsync.PathFinder, "find_spec", lambda *_: None)
    elif lacks == "room":
        monkeypatch.setattr(kernelsync, "_native_aio", lambda: NoRoom)
    assert KernelSync.open(loop) is None
    loop.close()
    assert len(reasons) == 1
    assert reason in reasons[0]
