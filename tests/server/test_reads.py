from __future__ import annotations

from typing import Any

import pytest

from kvorum import errors
from kvorum.server import reads as module
from kvorum.server.reads import ReadGate
from kvorum.types import Index


class Bench:
    """A gate whose consensus and clock are the test's hands."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[bytes] = []
        self.woken = 0
        self.log: list[str] = []
        self._id = 0
        self.gate = ReadGate(
            next_id=self._next_id, ask=self.asked.append, wake=self._wake, clock=lambda: self.now
        )

    def _next_id(self) -> int:
        self._id += 1
        return self._id

    def _wake(self) -> None:
        self.woken += 1

    def read(self, name: str) -> None:
        self.gate.read(lambda request, caller: self.log.append(request), name, Failing(self, name))


class Failing:
    def __init__(self, bench: Bench, name: str) -> None:
        self._bench = bench
        self._name = name

    def reply(self, message: bytes) -> None: ...

    def fail(self, code: int, message: str) -> None:
        self._bench.log.append(f"{self._name}: {message}")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_reads_of_one_turn_share_one_question(bench: Bench) -> None:
    bench.read("a")
    bench.read("b")
    assert (bench.woken, bench.asked) == (1, [])
    bench.gate.send()
    assert len(bench.asked) == 1
    bench.gate.confirm(bench.asked[0], Index(5))
    bench.gate.release(Index(4))
    assert bench.log == []  # the state is not there yet
    bench.gate.release(Index(5))
    assert bench.log == ["a", "b"]


def test_nothing_gathered_asks_nothing(bench: Bench) -> None:
    bench.gate.send()
    assert bench.asked == []


def test_a_later_answer_serves_earlier_questions_too(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.read(name)
        bench.gate.send()
    bench.gate.confirm(bench.asked[1], Index(3))
    bench.gate.release(Index(9))
    assert bench.log == ["a", "b"]
    bench.gate.confirm(bench.asked[0], Index(3))  # of a batch that is gone
    bench.gate.release(Index(9))
    assert bench.log == ["a", "b"]


def test_an_earlier_answer_never_serves_a_later_question(bench: Bench) -> None:
    """A read must not see a state from before it arrived."""
    bench.read("early")
    bench.gate.send()
    bench.read("late")
    bench.gate.send()
    bench.gate.confirm(bench.asked[0], Index(3))
    bench.gate.release(Index(9))
    assert bench.log == ["early"]


def test_a_lost_question_is_asked_again_and_given_up_in_the_end(bench: Bench) -> None:
    bench.read("a")
    bench.gate.send()
    bench.gate.expire(0.4, 7.0)
    assert len(bench.asked) == 1
    bench.gate.expire(0.5, 7.0)
    assert bench.asked[0] == bench.asked[1]
    assert bench.gate.slow == 1
    bench.gate.expire(7.0, 7.0)
    assert bench.log == [f"a: {errors.Timeout.message}"]
    assert bench.gate.failed == 1


def test_confirmed_reads_are_not_asked_for_again(bench: Bench) -> None:
    bench.read("a")
    bench.gate.send()
    bench.gate.confirm(bench.asked[0], Index(5))
    bench.gate.expire(3.0, 7.0)
    assert len(bench.asked) == 1


@pytest.mark.plain
def test_too_many_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    bench.read("a")
    bench.read("b")
    assert bench.log == [f"b: {errors.RequestTooManyRequests.message}"]
    bench.gate.send()
    bench.gate.confirm(bench.asked[0], Index(0))
    bench.gate.release(Index(0))
    bench.read("c")
    assert bench.log[1:] == ["a"]


def test_closing_refuses_all(bench: Bench) -> None:
    bench.read("sent")
    bench.gate.send()
    bench.read("gathered")
    bench.gate.close(errors.Stopped)
    bench.read("late")
    stopped: Any = errors.Stopped.message
    assert bench.log == [f"{name}: {stopped}" for name in ("sent", "gathered", "late")]


def test_a_read_that_fails_fails_alone(bench: Bench) -> None:
    def broken(request: Any, caller: Any) -> None:
        raise RuntimeError("a bug")

    bench.read("before")
    bench.gate.read(broken, "x", Failing(bench, "broken"))
    bench.read("after")
    assert bench.gate.gathered
    bench.gate.send()
    assert not bench.gate.gathered
    bench.gate.confirm(bench.asked[0], Index(0))
    bench.gate.release(Index(0))
    assert bench.log == ["before", "broken: kvorum: RuntimeError('a bug')", "after"]
