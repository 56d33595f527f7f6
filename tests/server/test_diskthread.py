from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from kvorum.server.diskthread import DiskThread


class Results:
    """What came back, in order, and an event for when enough has."""

    def __init__(self, wanted: int) -> None:
        self.seen: list[Any] = []
        self._wanted = wanted
        self._enough = asyncio.Event()
        self._thread = threading.get_ident()

    def __call__(self, result: Any) -> None:
        assert threading.get_ident() == self._thread, "a result was told off the loop"
        self.seen.append(result)
        if len(self.seen) == self._wanted:
            self._enough.set()

    async def wait(self) -> list[Any]:
        async with asyncio.timeout(10):
            await self._enough.wait()
        return self.seen


def test_work_runs_in_order_in_one_thread_and_results_come_to_the_loop() -> None:
    async def story() -> None:
        disk = DiskThread("test-disk", asyncio.get_running_loop())
        results = Results(50)
        threads = set()

        def work(number: int) -> int:
            threads.add(threading.current_thread().name)
            return number

        for number in range(50):
            disk.submit(lambda number=number: work(number), results)  # type: ignore[misc]
        assert await results.wait() == list(range(50))
        assert threads == {"test-disk"}
        disk.close()

    asyncio.run(story())


@pytest.mark.parametrize("error", [OSError("disk"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_work_raises_is_its_result_and_the_next_still_runs(error: BaseException) -> None:
    async def story() -> None:
        disk = DiskThread("test-disk", asyncio.get_running_loop())
        results = Results(2)

        def fail() -> None:
            raise error

        disk.submit(fail, results)
        disk.submit(lambda: "after", results)
        assert await results.wait() == [error, "after"]
        disk.close()

    asyncio.run(story())


def test_closing_finishes_what_was_submitted() -> None:
    async def story() -> None:
        disk = DiskThread("test-disk", asyncio.get_running_loop())
        done: list[int] = []
        gate = threading.Event()
        disk.submit(gate.wait, lambda result: None)
        for number in range(3):
            disk.submit(lambda number=number: done.append(number), lambda result: None)  # type: ignore[misc]
        gate.set()
        disk.close()
        assert done == [0, 1, 2]

    asyncio.run(story())


@pytest.mark.plain
def test_a_loop_that_is_gone_ends_the_thread() -> None:
    loop = asyncio.new_event_loop()
    disk = DiskThread("test-disk", loop)
    gate, told = threading.Event(), []
    disk.submit(gate.wait, told.append)
    loop.close()
    gate.set()
    disk._worker.join(10)
    assert not disk._worker.is_alive()
    assert told == []
