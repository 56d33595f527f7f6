"""Automatic compaction, with a clock that the test moves.

The stories are those of etcd's documentation and code: what it keeps, and when it acts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvorum import errors
from kvorum.server.autocompact import (
    HOUR,
    REVISION_INTERVAL,
    AutoCompactor,
    PeriodicPolicy,
    RevisionPolicy,
)
from kvorum.types import Revision

MINUTE = 60.0


class Server:
    """Compacts as it is told, or fails; ``rate`` revisions come in a second."""

    def __init__(self, rate: float = 1.0) -> None:
        self.time = 1000.0
        self.rate = rate
        self.leader = True
        self.failure = ""
        self.compacted: list[tuple[float, int]] = []
        self.waiting: list[Callable[[str], None]] = []
        self.answers = True

    def now(self) -> float:
        return self.time

    def revision(self) -> Revision:
        return Revision(1 + int((self.time - 1000.0) * self.rate))

    def is_leader(self) -> bool:
        return self.leader

    def compact(self, revision: Revision, done: Callable[[str], None]) -> None:
        self.compacted.append((self.time - 1000.0, revision))
        if self.answers:
            done(self.failure)
        else:
            self.waiting.append(done)

    def run(self, compactor: AutoCompactor, seconds: float) -> list[tuple[float, int]]:
        """Let time pass; the compactions of that time, as (seconds since the start, revision)."""
        self.compacted.clear()
        for _ in range(round(seconds / compactor.interval)):
            self.time += compactor.interval
            compactor.check()
        return [(round(at, 6), revision) for at, revision in self.compacted]


def make(server: Server, mode: str, retention: float) -> AutoCompactor:
    compactor = AutoCompactor.of(mode, retention, server)
    assert compactor is not None
    return compactor


def test_nothing_to_keep_means_never() -> None:
    assert AutoCompactor.of("periodic", 0, Server()) is None
    assert AutoCompactor.of("revision", 0, Server()) is None


# By time. As in etcd, the revision noted at a check is not looked at before the next one, so that
# what is kept is a period and one interval, from the second compaction on.


def test_nothing_happens_in_the_first_period() -> None:
    server = Server()
    compactor = make(server, "periodic", 10 * MINUTE)
    assert compactor.interval == MINUTE
    assert server.run(compactor, 9 * MINUTE) == []
    assert server.run(compactor, MINUTE) == [(600.0, 1)]


def test_a_short_period_is_compacted_once_a_period() -> None:
    server = Server()
    compactor = make(server, "periodic", 10 * MINUTE)
    found = server.run(compactor, 31 * MINUTE)
    assert found == [(600.0, 1), (1200.0, 541), (1800.0, 1141)]


def test_a_long_period_is_compacted_once_an_hour() -> None:
    """A day is kept; from then on there is a compaction each hour, a day behind."""
    server = Server(rate=1 / MINUTE)
    compactor = make(server, "periodic", 24 * HOUR)
    assert compactor.interval == HOUR / 10
    assert server.run(compactor, 24 * HOUR - 6 * MINUTE) == []
    found = server.run(compactor, 3 * HOUR)
    day = 24 * HOUR
    assert found[:3] == [(day, 1), (day + HOUR, 55), (day + 2 * HOUR, 115)]


@pytest.mark.parametrize("period", [0.5, 1.0, 7.0, 77.7, 599.0, HOUR, 5.5 * HOUR, 24 * HOUR])
def test_what_is_kept_is_a_period(period: float) -> None:
    server = Server(rate=1000.0 / period)
    compactor = make(server, "periodic", period)
    (_, first), *found = server.run(compactor, 3 * period)
    assert first == 1
    assert found
    for at, revision in found:
        kept = period + compactor.interval
        assert abs(revision - 1 - (at - kept) * server.rate) < 2, (at, revision)


def test_a_quiet_store_is_not_compacted_again() -> None:
    server = Server(rate=0.0)
    compactor = make(server, "periodic", 10 * MINUTE)
    assert server.run(compactor, HOUR) == [(600.0, 1)]


def test_a_failure_is_tried_again_at_the_next_check() -> None:
    server = Server()
    compactor = make(server, "periodic", 10 * MINUTE)
    server.failure = errors.Timeout.message
    assert server.run(compactor, 12 * MINUTE) == [(600.0, 1), (660.0, 1), (720.0, 61)]
    server.failure = ""
    assert server.run(compactor, 11 * MINUTE) == [(780.0, 121), (1380.0, 721)]


def test_compacted_by_somebody_else_counts_as_done() -> None:
    server = Server()
    compactor = make(server, "periodic", 10 * MINUTE)
    server.failure = errors.Compacted.message
    assert server.run(compactor, 20 * MINUTE) == [(600.0, 1), (1200.0, 541)]


def test_only_the_leader_proposes_and_a_new_one_knows_the_past() -> None:
    server = Server()
    compactor = make(server, "periodic", 10 * MINUTE)
    server.leader = False
    assert server.run(compactor, 25 * MINUTE) == []
    server.leader = True
    assert server.run(compactor, MINUTE) == [(1560.0, 901)]


def test_a_timer_that_fires_a_little_early_costs_no_interval() -> None:
    server = Server()
    compactor = make(server, "periodic", 10 * MINUTE)
    compactor.interval -= 0.001
    assert len(server.run(compactor, 10 * MINUTE)) == 1


def test_revisions_are_noted_in_bounded_number() -> None:
    policy = PeriodicPolicy(24 * HOUR, 0.0, Revision(1))
    for _ in range(1000):
        policy.due(0.0, Revision(1))
    assert len(policy._noted) == 241


# By revision


def test_a_number_of_revisions_is_kept() -> None:
    server = Server(rate=1 / MINUTE)
    compactor = make(server, "revision", 10)
    assert compactor.interval == REVISION_INTERVAL
    assert server.run(compactor, 5 * MINUTE) == []
    assert server.run(compactor, 10 * MINUTE) == [(600.0, 1), (900.0, 6)]


def test_a_quiet_store_has_nothing_to_compact() -> None:
    server = Server(rate=0.0)
    compactor = make(server, "revision", 10)
    assert server.run(compactor, HOUR) == []
    server.time += 100.0
    server.rate = 1.0
    server.run(compactor, REVISION_INTERVAL)
    server.rate = 0.0
    assert server.run(compactor, HOUR) == []  # less than ten are there


def test_failures_by_revision_are_tried_again() -> None:
    policy = RevisionPolicy(10)
    assert policy.due(0.0, Revision(30)) == 20
    assert policy.due(0.0, Revision(30)) == 20
    policy.done(0.0, Revision(20))
    assert policy.due(0.0, Revision(30)) is None
    assert policy.due(0.0, Revision(31)) == 21


def test_the_answer_may_come_late() -> None:
    """Until it has, the same is proposed at every check; then it is done."""
    server = Server()
    server.answers = False
    compactor = make(server, "periodic", 10 * MINUTE)
    assert server.run(compactor, 11 * MINUTE) == [(600.0, 1), (660.0, 1)]
    for done in server.waiting:
        done("")
    assert server.run(compactor, 9 * MINUTE) == []
