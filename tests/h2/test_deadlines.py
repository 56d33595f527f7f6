"""Many deadlines with one timer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.h2.deadlines import Deadlines


class Clocked:
    def __init__(self) -> None:
        self.deadline: float | None = None
        self.slot: set[Any] | None = None

    def expire(self) -> None: ...


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1e-9, 1e6)), max_size=30), st.floats(0, 1e6))
def test_never_early_and_not_much_late(calls: list[tuple[float, float]], start: float) -> None:
    armed: list[float] = []
    deadlines = Deadlines(armed.append)
    pending = []
    for delay, timeout in calls:
        call = Clocked()
        deadlines.add(call, start + delay, timeout)
        assert call.deadline == start + delay + timeout
        pending.append((call.deadline, timeout))
        assert min(armed) <= min(due for due, _ in pending) * 1.017 + 0.006
    for due, timeout in sorted(pending):
        late = max(0.0051, timeout * 0.017)
        expired = deadlines.expire(due - 1e-6 * max(1.0, due))
        assert all(call.deadline is not None and call.deadline < due for call in expired)
        deadlines.expire(due + late)
        assert deadlines.next_due is None or deadlines.next_due > due


def test_slots_are_bounded_however_long_the_timeouts() -> None:
    deadlines = Deadlines(lambda when: None)
    now = 1000.0
    for step in range(50_000):
        now += 0.02
        for timeout in (0.05, 1.0, 60.0, 86_400.0 * 365):
            call = Clocked()
            deadlines.add(call, now, timeout)
            assert call.slot is not None
            call.slot.discard(call)
        if step % 100 == 0:
            assert deadlines.expire(now) == []
    assert len(deadlines._slots) < 500


def test_the_timer_is_armed_again_only_for_something_earlier() -> None:
    armed: list[float] = []
    deadlines = Deadlines(armed.append)
    assert deadlines.next_due is None
    for timeout in (5.0, 6.0, 5.0, 1.0, 2.0, 0.5):
        deadlines.add(Clocked(), 100.0, timeout)
    assert len(armed) == 3
    assert armed == sorted(armed, reverse=True)
    assert deadlines.next_due == armed[-1]
    late = deadlines.expire(101.1)
    assert sorted(call.deadline or 0 for call in late) == [100.5, 101.0]
    assert deadlines.next_due == pytest.approx(102.0, rel=0.02)
