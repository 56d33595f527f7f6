"""Which calls are let in: at a learner, without a leader, and otherwise."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kvorum import errors
from kvorum.api.admission import PATIENCE, Admission
from kvorum.errors import EtcdError
from kvorum.h2 import Method
from kvorum.pb import etcdserverpb as pb

RANGE, PUT = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put"
STATUS, SNAPSHOT = "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"
WATCH = "/etcdserverpb.Watch/Watch"
STREAMS = (WATCH, SNAPSHOT)
READ = pb.RangeRequest(key=b"k").SerializeToString()
STALE_READ = pb.RangeRequest(key=b"k", serializable=True).SerializeToString()
WANTS_LEADER = [("user-agent", "x"), ("hasleader", "true")]


class Call:
    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self.metadata = metadata
        self.done = False
        self.taken = False
        self.failure: tuple[int, str] | None = None
        self.cancelled = 0
        self.on_cancel: Callable[[], None] | None = self._cancel

    def fail(self, code: int, message: str) -> None:
        self.done = True
        self.failure = (code, message)

    def _cancel(self) -> None:
        self.cancelled += 1

    @property
    def end(self) -> type[EtcdError] | str:
        """By which error it was refused, or that it was taken."""
        if self.failure is None:
            assert self.taken
            return "taken"
        assert not self.taken
        return EtcdError.by_message[self.failure[1]]


class Bench:
    def __init__(self, *, learner: bool = False, leader: int = 1) -> None:
        self.learner = learner
        self.raft = SimpleNamespace(leader=leader)
        self.cluster = SimpleNamespace(is_learner=lambda: self.learner)
        self.leadership = SimpleNamespace(on_change=[])
        self.config = SimpleNamespace(election_timeout=1000)
        self.intervals: list[float] = []
        self.methods = {
            path: Method(self._take, streaming=path in STREAMS)
            for path in (RANGE, PUT, STATUS, SNAPSHOT, WATCH)
        }
        self.admission = Admission(self, self.methods)  # type: ignore[arg-type]

    def every(self, seconds: float, work: Callable[[], None]) -> None:
        self.intervals.append(seconds)

    def _take(self, call: Call, *message: bytes) -> None:
        call.taken = True

    def changed(self, *, learner: bool | None = None, leader: int | None = None) -> None:
        self.learner = self.learner if learner is None else learner
        self.raft.leader = self.raft.leader if leader is None else leader
        for call in self.leadership.on_change:
            call()

    def call(self, path: str, message: bytes = b"", *, wants_leader: bool = False) -> Call:
        call = Call(WANTS_LEADER if wants_leader else [("hasleader", "no")])
        arguments: tuple[Any, ...] = (call,) if path in STREAMS else (call, message)
        self.methods[path].handler(*arguments)
        return call


def test_a_voter_with_a_leader_takes_everything_as_it_comes() -> None:
    bench = Bench()
    for path in bench.methods:
        assert bench.call(path).end == "taken"
        assert bench.call(path, wants_leader=True).end == "taken"
    # Not by way of anything that would cost time.
    assert bench.methods[PUT].handler == bench._take


@pytest.mark.parametrize(
    ("path", "message", "end"),
    [
        (PUT, b"", errors.NotSupportedForLearner),
        (RANGE, READ, errors.NotSupportedForLearner),
        (RANGE, STALE_READ, "taken"),
        (RANGE, b"\xff", "taken"),
        (STATUS, b"", "taken"),
        (WATCH, b"", errors.NotSupportedForLearner),
        (SNAPSHOT, b"", "taken"),
    ],
)
def test_what_a_learner_may_be_asked(path: str, message: bytes, end: type[EtcdError] | str) -> None:
    bench = Bench(learner=True)
    assert bench.call(path, message).end == end
    bench.changed(learner=False)
    assert bench.call(path, message).end == "taken"


def test_a_learner_is_one_whether_it_has_a_leader_or_not() -> None:
    bench = Bench(learner=True, leader=0)
    assert bench.call(PUT, wants_leader=True).end == errors.NotSupportedForLearner
    assert bench.call(RANGE, STALE_READ, wants_leader=True).end == errors.NoLeader
    assert bench.call(RANGE, STALE_READ).end == "taken"


@pytest.mark.parametrize("path", [PUT, RANGE, WATCH])
def test_without_a_leader(path: str) -> None:
    bench = Bench()
    bench.changed(leader=0)
    assert bench.call(path, wants_leader=True).end == errors.NoLeader
    assert bench.call(path).end == "taken"
    bench.changed(leader=2)
    assert bench.call(path, wants_leader=True).end == "taken"


def test_streams_that_want_a_leader_end_when_there_is_none_for_long() -> None:
    bench = Bench()
    assert bench.intervals == [1.0]
    wanting, other, ended = (bench.call(WATCH, wants_leader=w) for w in (True, False, True))
    ended.done = True
    bench.changed(leader=0)
    for _ in range(PATIENCE - 1):
        bench.admission.look()
    assert wanting.failure is None
    bench.changed(leader=1)
    bench.admission.look()
    bench.changed(leader=0)
    for _ in range(PATIENCE):
        assert wanting.failure is None
        bench.admission.look()
    assert wanting.failure == (errors.NoLeader.code, errors.NoLeader.message)
    assert (wanting.cancelled, other.failure, ended.failure) == (1, None, None)
    bench.admission.look()
    assert wanting.cancelled == 1
