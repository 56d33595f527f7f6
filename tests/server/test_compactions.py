"""Physical compactions, one after the other, beside everything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvorum.backend import Backend, CommitError
from kvorum.mvcc.store import Store
from kvorum.server.compaction import Compactions
from kvorum.types import LeaseID

FINISHED = b"finishedCompactRev"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.backend = Backend(folder / "kvorum.mdb", loop=self.loop, batch_interval=60.0)
        self.store = Store(self.backend)
        self.failures: list[BaseException] = []
        self.failed = asyncio.Event()
        self.log: list[str] = []
        self.runner = Compactions(
            self.store, batch_limit=5, pause=0.0, loop=self.loop, failed=self._fail
        )

    def _fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.failed.set()

    def fill(self, count: int) -> None:
        """Revisions 2 to count + 1, all of one key."""
        for number in range(count):
            self.store.put(b"key", b"%d" % number, LeaseID(0))

    def finished(self) -> int:
        """The last compaction that has come to an end, on disk."""
        with self.backend.read_view() as view:
            mark = view.get("meta", FINISHED) or bytes(8)
        return int.from_bytes(mark[:8], "big")

    def revisions(self) -> int:
        return len(self.backend.range("key", b"", None))

    async def settled(self, name: str = "") -> None:
        event = asyncio.Event()
        self.runner.when_settled(event.set)
        async with asyncio.timeout(10):
            await event.wait()
        self.log.append(name)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Bench]:
    bench = Bench(folder)
    try:
        yield bench
    finally:
        await bench.runner.stop()
        bench.backend.close()


Story = Callable[[Bench], Awaitable[None]]


def run(folder: Path, story: Story) -> None:
    async def whole() -> None:
        async with opened(folder) as bench:
            await story(bench)
            assert bench.failures == []

    asyncio.run(whole())


def test_a_compaction_is_carried_out_and_then_reported(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.fill(40)
        bench.store.compact(31)
        await bench.settled()
        assert bench.finished() == 31
        assert bench.revisions() == 11
        assert not bench.store.compactions
        assert not bench.runner.running

    run(tmp_path, story)


def test_several_are_carried_out_in_order_before_anybody_is_told(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.fill(40)
        bench.store.compact(11)
        first = asyncio.ensure_future(bench.settled("first"))
        await asyncio.sleep(0)
        bench.store.compact(21)
        bench.store.compact(31)
        second = asyncio.ensure_future(bench.settled("second"))
        await asyncio.gather(first, second)
        assert bench.log == ["first", "second"]
        assert bench.finished() == 31
        assert bench.store.hashes[0].rev == 11

    run(tmp_path, story)


def test_nothing_to_do_is_settled_at_once_and_on_disk(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.fill(3)
        await bench.settled()
        assert bench.backend.pending_ops == 0

    run(tmp_path, story)


def test_the_runner_starts_again_after_it_came_to_rest(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.fill(40)
        for rev in (11, 21, 31):
            bench.store.compact(rev)
            bench.runner.start()
            bench.runner.start()
            await bench.settled()
            assert bench.finished() == rev

    run(tmp_path, story)


def test_stopping_midway_leaves_it_to_the_next_start(tmp_path: Path) -> None:
    async def first(bench: Bench) -> None:
        bench.fill(40)
        bench.store.compact(31)
        bench.runner.start()
        assert bench.runner.running
        await bench.runner.stop()
        assert not bench.runner.running
        await bench.backend.commit()
        assert bench.finished() == 0

    async def second(bench: Bench) -> None:
        bench.store.restore()
        assert [job.rev for job in bench.store.compactions] == [31]
        await bench.settled()
        assert bench.finished() == 31
        assert bench.revisions() == 11

    run(tmp_path, first)
    run(tmp_path, second)


def test_stopping_what_does_not_run(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.runner.stop()

    run(tmp_path, story)


@pytest.mark.plain
def test_a_failure_is_reported_and_nobody_is_told_that_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(bench: Bench) -> None:
        async def broken() -> None:
            raise CommitError("disk")

        bench.fill(40)
        bench.store.compact(31)
        told: list[str] = []
        monkeypatch.setattr(bench.backend, "commit", broken)
        bench.runner.when_settled(lambda: told.append("done"))
        async with asyncio.timeout(10):
            await bench.failed.wait()
        assert [str(error) for error in bench.failures] == ["disk"]
        assert told == []
        bench.failures.clear()

    run(tmp_path, story)
