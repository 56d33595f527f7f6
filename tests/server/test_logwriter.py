"""The ways to disk, with a real log, a thread and a kernel that work when the test says so."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from logwriter_kit import Bench

from kvorum.raft.types import HardState
from kvorum.server import logwriter
from kvorum.server.logwriter import LOOP_BYTES
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WALError, WriteFailed, WriteTimes

pytestmark = pytest.mark.plain  # the clock is replaced

EIO = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """In which a write takes a microsecond, however busy the machine is."""
    ticks = count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * 1e-6)
    made = Bench(tmp_path)
    yield made
    made.writer.close()
    made.wal.close()


# The way by the kernel


def test_a_batch_is_written_here_and_synced_by_the_kernel(bench: Bench) -> None:
    bench.write(100)
    assert b"x" * 100 in bench.on_disk()
    assert bench.kernel.busy
    assert os.fstat(bench.kernel.fd).st_ino in {p.stat().st_ino for p in bench.folder.iterdir()}
    assert (bench.results, list(bench.thread.waiting)) == ([], [])
    bench.kernel.finish()
    (times,) = bench.results
    assert isinstance(times, WriteTimes)
    assert times.write > 0
    assert times.sync > 0


def test_what_comes_meanwhile_waits_and_keeps_its_order(bench: Bench) -> None:
    for _ in range(3):
        bench.write()
    assert bench.kernel.syncs == 1
    for told in (1, 2, 3):
        bench.kernel.finish()
        assert len(bench.results) == told
    assert bench.kernel.syncs == 3
    assert bench.read_back() == [1, 2, 3]


def test_the_next_sync_begins_before_the_answer_is_worked_on(bench: Bench) -> None:
    busy: list[bool] = []
    bench.writer.write(bench.batch(), lambda result: busy.append(bench.kernel.busy))
    bench.write()
    bench.kernel.finish()
    assert busy == [True]


def test_an_answer_may_lead_to_the_next_write(bench: Bench) -> None:
    bench.writer.write(bench.batch(), lambda result: bench.write())
    bench.kernel.finish()
    bench.kernel.finish()
    assert len(bench.results) == 1
    assert bench.read_back() == [1, 2]


def test_times_are_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(logwriter, "perf_counter", lambda: now)
    bench.write()
    now = 102.5
    bench.kernel.finish()
    assert bench.results[0].sync == 2.5


# The way by the thread


def test_other_work_waits_for_a_sync_and_writes_wait_for_it(bench: Bench) -> None:
    """A snapshot's record, say: two syncs of one file at a time could hide an error."""
    bench.write()
    batch = bench.batch()
    bench.writer.submit(lambda: bench.wal.write(batch), bench.results.append)
    bench.write()
    assert not bench.thread.waiting
    bench.kernel.finish()
    assert not bench.kernel.busy
    assert len(bench.thread.waiting) == 2
    bench.write()
    assert not bench.kernel.busy
    while bench.thread.waiting:
        bench.thread.run()
    assert len(bench.results) == 4
    bench.write()
    assert bench.kernel.busy  # all is done, so the kernel is next again
    bench.kernel.finish()
    assert bench.read_back() == [1, 2, 3, 4, 5]


def test_a_cut_is_the_threads(tmp_path: Path) -> None:
    bench = Bench(tmp_path, segment_size=4096)
    for _ in range(5):
        bench.write(1000)
        if bench.thread.waiting:
            bench.thread.run()
        else:
            bench.kernel.finish()
    assert all(isinstance(result, WriteTimes) for result in bench.results)
    assert bench.kernel.syncs == 4
    assert len(list(bench.folder.glob("*.wal"))) == 2
    assert bench.read_back() == [1, 2, 3, 4, 5]


def test_a_large_batch_is_the_threads(bench: Bench) -> None:
    bench.write(LOOP_BYTES)
    assert not bench.kernel.busy
    bench.thread.run()
    assert isinstance(bench.results[0], WriteTimes)


def test_a_slow_write_sends_the_next_to_the_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's memory is full of what waits for the disk: writes block."""
    slow = True
    pwrite = os.pwrite

    def blocking(*args: Any) -> int:
        bench.wal._write_seconds += 0.5 if slow else 0.0
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", blocking)
    bench.write()
    bench.kernel.finish()
    slow = False
    bench.write()
    assert not bench.kernel.busy
    bench.thread.run()
    bench.write()  # it is over
    assert bench.kernel.busy
    bench.kernel.finish()


def test_what_needs_no_sync_gets_none(bench: Bench) -> None:
    bench.write()
    bench.kernel.finish()
    batch = bench.wal.encode(HardState(Term(1), MemberID(1), Index(1)), [])
    bench.writer.write(batch, bench.results.append)
    assert not bench.kernel.busy
    bench.thread.run()
    assert bench.results[1] == WriteTimes(0.0, 0.0)


def test_without_a_kernel_the_thread_does_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, kernel=False)
    bench.write()
    bench.write()
    assert len(bench.thread.waiting) == 2
    assert bench.read_back() == [1, 2]
    assert len(bench.results) == 2


# The way on the loop


def test_a_quick_disk_is_one_that_was_quick_and_has_nothing_to_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(logwriter, "perf_counter", lambda: now)
    assert not bench.writer.quick  # nobody knows yet
    for took, quick in ((0.0005, True), (0.005, False), (0.0005, True)):
        bench.write()
        assert not bench.writer.quick
        now += took
        bench.kernel.finish()
        assert bench.writer.quick == quick
    bench.writer.submit(lambda: None, lambda result: None)
    assert not bench.writer.quick
    bench.thread.run()
    assert bench.writer.quick
    assert isinstance(bench.writer.write_here(bench.batch()), WriteTimes)
    assert not bench.kernel.busy
    assert bench.read_back() == [1, 2, 3, 4]


# Failures


def check_failed(bench: Bench, *words: str) -> None:
    """One failure, told as one, and a log that takes nothing more."""
    assert len(bench.results) == 1
    (failure,) = bench.results
    assert isinstance(failure, WriteFailed)
    assert all(word in str(failure) for word in words), failure
    assert bench.wal.failed is failure
    with pytest.raises(WALError):
        bench.batch()


def test_a_failed_sync_is_the_end_of_the_log(bench: Bench) -> None:
    bench.write()
    bench.kernel.finish(EIO)
    check_failed(bench, "Input/output error", ".wal")


def test_what_waits_behind_a_failed_sync_fails(bench: Bench) -> None:
    bench.write()
    bench.write()
    bench.kernel.finish(EIO)
    bench.loop.turn()
    assert bench.kernel.syncs == 1
    assert len(bench.results) == 2
    assert set(bench.results) == {bench.wal.failed}


def test_a_failed_write_is_the_end_of_the_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    bench.write()
    assert bench.results == []  # never while it is asked for
    bench.loop.turn()
    check_failed(bench, "No space left")
    assert bench.kernel.syncs == 0


def test_a_kernel_without_room_is_asked_again_next_time(bench: Bench) -> None:
    bench.kernel.refusal = BlockingIOError(errno.EAGAIN, "no room")
    bench.write()
    bench.write()  # behind the thread
    bench.thread.run()
    bench.thread.run()
    assert [type(result) for result in bench.results] == [WriteTimes] * 2
    assert bench.results[0].write > 0
    assert bench.results[0].sync > 0
    bench.kernel.refusal = None
    bench.write()
    assert bench.kernel.busy
    bench.kernel.finish()
    assert bench.read_back() == [1, 2, 3]


def test_a_kernel_that_refuses_is_not_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[Exception] = []
    monkeypatch.setattr(logwriter, "told_unavailable", reasons.append)
    bench.kernel.refusal = OSError(errno.EINVAL, "not here")
    for _ in range(2):
        bench.write()
        bench.thread.run()
    assert reasons == [bench.kernel.refusal]
    assert bench.kernel.closed == 1
    assert bench.read_back() == [1, 2]


def test_a_sync_that_fails_in_the_kernels_place_is_the_end_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise EIO

    monkeypatch.setattr(logwriter, "sync_data", broken)
    bench.kernel.refusal = BlockingIOError(errno.EAGAIN, "no room")
    bench.write()
    bench.thread.run()
    check_failed(bench, "Input/output error")


# The end


def test_closing_finishes_what_was_asked_for(bench: Bench) -> None:
    for _ in range(3):
        bench.write()
    bench.writer.close()
    assert bench.kernel.syncs == 1
    assert (bench.kernel.closed, bench.thread.closed) == (1, 1)
    assert len(bench.results) == 3
    bench.writer.close()  # once more does no harm
    assert bench.kernel.closed == 1
    assert bench.read_back() == [1, 2, 3]
