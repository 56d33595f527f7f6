from __future__ import annotations

import pytest

from kvorum import errors
from kvorum.pb import etcdserverpb as pb
from kvorum.server import proposer as module
from kvorum.server.proposer import Ignored, Proposer, Told
from kvorum.server.request import RequestIds, decode_request
from kvorum.types import MemberID


class Caller:
    def __init__(self) -> None:
        self.answers: list[object] = []

    def reply(self, message: bytes) -> None:
        self.answers.append(message)

    def fail(self, code: int, message: str) -> None:
        self.answers.append(message)


class Bench:
    """A proposer with a clock that the test moves, and a count of its wake-ups."""

    def __init__(self, max_request_bytes: int = 1000) -> None:
        self.now = 0.0
        self.woken = 0
        self.proposer = Proposer(
            RequestIds(MemberID(5), 0),
            max_request_bytes=max_request_bytes,
            wake=self._wake,
            clock=lambda: self.now,
        )

    def _wake(self) -> None:
        self.woken += 1

    def put(self, key: bytes = b"k") -> Caller:
        caller = Caller()
        request = pb.PutRequest(key=key)
        self.proposer.propose("put", request.SerializeToString(), request, caller)
        return caller


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_batch_wakes_once_and_keeps_the_order(bench: Bench) -> None:
    bench.put(b"a")
    bench.put(b"b")
    entries = bench.proposer.take_batch()
    assert [decode_request(e.data)[2].key for e in entries] == [b"a", b"b"]  # type: ignore[index]
    assert [e.local.request.key for e in entries] == [b"a", b"b"]  # type: ignore[attr-defined]
    assert bench.woken == 1
    assert bench.proposer.take_batch() == []
    bench.put()
    assert bench.woken == 2


def test_a_request_waits_until_it_is_done(bench: Bench) -> None:
    caller = bench.put()
    (entry,) = bench.proposer.take_batch()
    request_id = entry.local.id  # type: ignore[attr-defined]
    assert decode_request(entry.data)[0] == request_id  # type: ignore[index]
    found = bench.proposer.done(request_id)
    assert found is not None
    assert found.caller is caller
    assert bench.proposer.done(request_id) is None


def test_too_large_is_measured_as_it_goes_into_the_log() -> None:
    bench = Bench(max_request_bytes=40)
    caller = bench.put(b"x" * 40)
    assert caller.answers == [errors.RequestTooLarge.message]
    assert bench.proposer.take_batch() == []
    fits = bench.put(b"x" * 10)
    assert fits.answers == []


@pytest.mark.parametrize(("name", "limit"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", 20)])
@pytest.mark.plain
def test_more_than_may_wait_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(module, name, limit)
    callers = [bench.put() for _ in range(4)]
    refused = [c for c in callers if c.answers == [errors.RequestTooManyRequests.message]]
    assert refused
    assert callers[0].answers == []
    assert bench.proposer.failed == len(refused)
    for entry in bench.proposer.take_batch():
        bench.proposer.done(entry.local.id)  # type: ignore[attr-defined]
    assert bench.put().answers == []


def test_what_waited_too_long_is_given_up_and_the_rest_is_not(bench: Bench) -> None:
    old = bench.put()
    bench.now = 5.0
    young = bench.put()
    bench.proposer.expire(5.0)
    assert old.answers == [errors.Timeout.message]
    assert young.answers == []
    assert len(bench.proposer.waiting) == 1


def test_dropped_entries_fail_their_callers(bench: Bench) -> None:
    caller = bench.put()
    bench.proposer.drop(bench.proposer.take_batch(), errors.NoLeader)
    assert caller.answers == [errors.NoLeader.message]


def test_closing_fails_all_that_wait_and_all_that_comes(bench: Bench) -> None:
    before = bench.put()
    bench.proposer.close(errors.Stopped)
    after = bench.put()
    assert before.answers == after.answers == [errors.Stopped.message]
    assert bench.proposer.take_batch() == []


def test_callers_of_the_server_itself() -> None:
    told: list[str] = []
    Told(told.append).reply(b"")
    Told(told.append).fail(1, "why")
    assert told == ["", "why"]
    Ignored().reply(b"")
    Ignored().fail(1, "why")
