"""Whatever takes which way to disk, and whenever it gets there: each is told of, once, in order.

Also on the compiled modules, where the type checker's idea of what may happen is part of the code.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from logwriter_kit import Bench

from kvorum.server.logwriter import LOOP_BYTES
from kvorum.wal import WriteTimes

STEPS = 120
SIZES = (10, 10, 10, 1000, LOOP_BYTES + 1)
NO_ROOM = BlockingIOError(errno.EAGAIN, "no room")
NEVER = OSError(errno.EINVAL, "not this file")


class Story:
    """Random writes, other work, and ends of either. Answers lead to more of it, now and then."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = Random(seed)
        self.bench = Bench(folder, segment_size=64 * 1024)
        self.asked = 0
        self.told: list[int] = []
        self.batches = 0

    def act(self) -> None:
        bench, dice = self.bench, self.random.random()
        if dice < 0.45:
            self.ask()
        elif dice < 0.7:
            if bench.kernel.busy:
                bench.kernel.finish()
        elif dice < 0.95:
            if bench.thread.waiting:
                bench.thread.run()
        else:
            bench.kernel.refusal = self.random.choice([None, None, NO_ROOM])
        bench.loop.turn()

    def ask(self) -> None:
        self.asked += 1
        number = self.asked
        if self.random.random() < 0.1:
            self.bench.writer.submit(lambda: None, lambda _: self.tell(number, None))
            return
        self.batches += 1
        batch = self.bench.batch(self.random.choice(SIZES))
        self.bench.writer.write(batch, lambda result: self.tell(number, result))

    def tell(self, number: int, result: Any) -> None:
        assert result is None or isinstance(result, WriteTimes), result
        self.told.append(number)
        if self.random.random() < 0.3:
            self.ask()


@pytest.mark.parametrize("seed", range(12))
def test_each_is_told_of_once_and_in_order(tmp_path: Path, seed: int) -> None:
    story = Story(tmp_path, seed)
    for _ in range(STEPS):
        story.act()
        assert story.told == list(range(1, len(story.told) + 1))
    if seed % 3 == 0:
        story.bench.kernel.refusal = NEVER
    for _ in range(1000):  # to the end: what is answered may ask for more
        if len(story.told) == story.asked:
            break
        story.bench.kernel.refusal = None if seed % 3 else NEVER
        _finish_one(story.bench)
    assert story.told == list(range(1, story.asked + 1))
    assert story.bench.read_back() == list(range(1, story.batches + 1))


def _finish_one(bench: Bench) -> None:
    if bench.kernel.busy:
        bench.kernel.finish()
    elif bench.thread.waiting:
        bench.thread.run()
    bench.loop.turn()


def test_several_that_wait_are_begun_one_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    told: list[int] = []

    def tell(number: int) -> Callable[[Any], None]:
        return lambda _: told.append(number)

    for number in range(4):
        bench.writer.write(bench.batch(), tell(number))
    for done in range(4):
        bench.kernel.finish()
        assert told == list(range(done + 1))
    assert bench.read_back() == [1, 2, 3, 4]


def test_what_cannot_be_begun_for_whatever_reason_is_told(tmp_path: Path) -> None:
    """The loop would only log it, and the member would go on with a hole in its log."""
    bench = Bench(tmp_path)
    bench.write()
    bench.write()
    bench.kernel.refusal = bug = ZeroDivisionError("a bug")  # type: ignore[assignment]
    bench.kernel.finish()
    assert bench.results == [bug]
    bench.kernel.refusal = None
    bench.writer.close()
    bench.wal.close()
