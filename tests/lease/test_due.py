"""The queue of times, against a plain dict."""

from __future__ import annotations

import random

import pytest

from kvorum.lease.due import SLACK, DueQueue
from kvorum.types import LeaseID

A, B, C = LeaseID(1), LeaseID(2), LeaseID(3)


def all_due(queue: DueQueue, now: float) -> list[LeaseID]:
    found = []
    while (id := queue.pop(now)) is not None:
        found.append(id)
    return found


def test_ids_come_out_by_time_and_not_before() -> None:
    queue = DueQueue()
    queue.set(B, 2.0)
    queue.set(A, 1.0)
    queue.set(C, 3.0)
    assert queue.pop(0.9) is None
    assert all_due(queue, 2.0) == [A, B]
    assert len(queue) == 1
    assert all_due(queue, 9.0) == [C]
    assert len(queue) == 0


@pytest.mark.parametrize("times", [(5.0, 1.0), (1.0, 5.0), (5.0, 5.0)])
def test_an_id_has_one_time_the_last_given(times: tuple[float, float]) -> None:
    queue = DueQueue()
    for time in times:
        queue.set(A, time)
    assert len(queue) == 1
    assert queue.pop(times[-1] - 0.1) is None
    assert all_due(queue, 9.0) == [A]


def test_discarded_ids_do_not_come_out() -> None:
    queue = DueQueue()
    queue.set(A, 1.0)
    queue.set(B, 1.0)
    queue.discard(A)
    queue.discard(A)
    queue.discard(C)
    assert all_due(queue, 9.0) == [B]


def test_reset_replaces_everything() -> None:
    queue = DueQueue()
    queue.set(A, 1.0)
    queue.reset({C: 2.0, B: 1.0})
    assert all_due(queue, 9.0) == [B, C]
    queue.set(A, 1.0)
    queue.reset()
    assert queue.pop(9.0) is None


@pytest.mark.parametrize("how", ["put off", "discard"])
def test_outdated_entries_are_bounded(how: str) -> None:
    queue = DueQueue()
    for n in range(5000):
        queue.set(LeaseID(n % 10 if how == "put off" else n), 1e9 + n)
        if how == "discard" and n >= 10:
            queue.discard(LeaseID(n - 10))
        assert queue.heap_size <= 2 * len(queue) + SLACK
    assert len(queue) == 10


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_dict(seed: int) -> None:
    rng = random.Random(seed)
    queue, known = DueQueue(), dict[LeaseID, float]()
    now = 0.0
    for _ in range(3000):
        id, act = LeaseID(rng.randrange(40)), rng.random()
        if act < 0.5:
            known[id] = now + rng.randrange(50)
            queue.set(id, known[id])
        elif act < 0.7:
            known.pop(id, None)
            queue.discard(id)
        else:
            now += rng.randrange(3)
            due = sorted((at, id) for id, at in known.items() if at <= now)
            assert all_due(queue, now) == [id for _, id in due]
            for _, id in due:
                del known[id]
        assert len(queue) == len(known)
        assert queue.heap_size <= 2 * len(queue) + SLACK
