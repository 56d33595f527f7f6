"""A member whose log is synced by the kernel, beside the loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.embedded import Client, config_of, member_on, status, story
from support.need import need
from support.rpc import PUT, RANGE

from kvorum import errors
from kvorum.embed import Member
from kvorum.server.kernelsync import KernelSync, Synced
from kvorum.wal import WriteFailed

TOGETHER = 20

Start = Callable[[KernelSync, int, Synced], None]


@pytest.fixture
def start() -> Start:
    """The method that begins a sync, where there is one that works."""

    async def works() -> bool:
        kernel = KernelSync.open(asyncio.get_running_loop())
        if kernel is not None:
            kernel.close()
        return kernel is not None

    need(asyncio.run(works()), "no native asynchronous I/O here")
    return KernelSync.start


@story
async def test_members_come_and_go_and_leave_nothing_open(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, unsafe_no_fsync=False)
    opened: list[list[str]] = []
    syncs = 0

    def counting(self: KernelSync, fd: int, done: Synced) -> None:
        nonlocal syncs
        syncs += 1
        start(self, fd, done)

    monkeypatch.setattr(KernelSync, "start", counting)
    for number in range(4):
        async with member_on(config) as (_, client):
            puts = [client.put(b"%d/%d" % (number, n), b"v") for n in range(TOGETHER)]
            await asyncio.gather(*puts)
            found = await client.call(RANGE, key=b"\0", range_end=b"\0")
            assert found.count == TOGETHER * (number + 1)
        gc.collect()
        opened.append(sorted(os.listdir("/proc/self/fd")))
        assert syncs > number
    assert opened[1:] == opened[:1] * 3


@story
async def test_a_sync_that_failed_ends_the_member(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there on nothing is acknowledged."""
    config = config_of(tmp_path, unsafe_no_fsync=False)
    member = Member(config)
    await member.start()
    client = Client(config)
    await client.put(b"before")

    def failing(self: KernelSync, fd: int, done: Synced) -> None:
        start(self, fd, lambda _: done(OSError(errno.EIO, os.strerror(errno.EIO))))

    with monkeypatch.context() as patch:
        patch.setattr(KernelSync, "start", failing)
        doomed = [asyncio.ensure_future(client.error(PUT, key=b"k%d" % n)) for n in range(TOGETHER)]
        async with asyncio.timeout(10):
            why = await member.wait_fatal()
        assert isinstance(why, WriteFailed)
        assert "Input/output error" in str(why)
        assert await asyncio.gather(*doomed) == [status(errors.Stopped)] * TOGETHER
    await client.close()
    await member.stop()  # what is wrong was told already
    async with member_on(config) as (_, client):
        assert (await client.call(RANGE, key=b"before")).count == 1
