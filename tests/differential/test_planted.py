"""The differential test finds faults: one of each sort is planted between it and a real etcd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from differential.generator import Generator
from differential.runner import Mismatch, Runner
from differential.shrink import shrink
from differential.steps import Step
from differential.target import Target
from support.binaries import Binaries
from support.member import MemberFactory
from support.rpc import (
    BY_PATH,
    DELETE_RANGE,
    HASH_KV,
    LEASE_TTL,
    PUT,
    RANGE,
    TXN,
    WATCH_PATH,
    Client,
    Reply,
)

from kvorum.pb import etcdserverpb as pb

STEPS = 1500
FLAGS = ["--log-level=warn", "--unsafe-no-fsync"]

Change = Callable[[Any, Any], bool]


class Liar:
    """Passes requests on, and changes the answer to the first that ``change`` agrees to."""

    def __init__(self, path: str, change: Change) -> None:
        self.path = path
        self.change = change
        self.lied = False

    def __call__(self, client: Client, step: Step) -> Reply:
        reply = client.raw(step.path, step.request)
        if self.lied or step.path != self.path or not reply.ok:
            return reply
        response = BY_PATH[step.path].response.FromString(reply.body)
        self.lied = self.change(step.parsed(), response)
        return Reply(response.SerializeToString()) if self.lied else reply


def drop_a_pair(request: Any, response: Any) -> bool:
    if len(response.kvs) < 3 or response.more:
        return False
    del response.kvs[1]
    return True


def miscount(request: Any, response: Any) -> bool:
    response.count += 1
    return response.count > 1


def forget_more(request: Any, response: Any) -> bool:
    changed, response.more = response.more, False
    return changed


def old_version(request: Any, response: Any) -> bool:
    if not response.kvs:
        return False
    response.kvs[0].version += 1
    return True


def swap_pairs(request: Any, response: Any) -> bool:
    """In the default order, two pairs change places."""
    if len(response.kvs) < 2 or request.sort_target != pb.RangeRequest.KEY:
        return False
    pairs = [type(kv).FromString(kv.SerializeToString()) for kv in response.kvs]
    response.ClearField("kvs")
    response.kvs.extend([pairs[1], pairs[0], *pairs[2:]])
    return True


def revision_one_off(request: Any, response: Any) -> bool:
    response.header.revision += 1
    return True


def forget_previous(request: Any, response: Any) -> bool:
    had = response.HasField("prev_kv")
    response.ClearField("prev_kv")
    return had


def delete_one_less(request: Any, response: Any) -> bool:
    response.deleted -= 1
    return response.deleted >= 0


def other_branch(request: Any, response: Any) -> bool:
    same_length = len(request.success) == len(request.failure) == 0
    response.succeeded = not response.succeeded
    return same_length


def drop_an_answer(request: Any, response: Any) -> bool:
    for op in response.responses:
        if op.HasField("response_range") and op.response_range.kvs:
            del op.response_range.kvs[0]
            return True
    return False


def drop_a_lease_key(request: Any, response: Any) -> bool:
    if not response.keys:
        return False
    del response.keys[0]
    return True


def another_hash(request: Any, response: Any) -> bool:
    response.hash ^= 1
    return True


LIES = [
    (RANGE.path, drop_a_pair),
    (RANGE.path, miscount),
    (RANGE.path, forget_more),
    (RANGE.path, old_version),
    (RANGE.path, swap_pairs),
    (PUT.path, revision_one_off),
    (PUT.path, forget_previous),
    (DELETE_RANGE.path, delete_one_less),
    (TXN.path, other_branch),
    (TXN.path, drop_an_answer),
    (LEASE_TTL.path, drop_a_lease_key),
    (HASH_KV.path, another_hash),
]


@pytest.fixture(scope="module")
def spare(module_members: MemberFactory, reference: Binaries) -> Callable[[], Runner]:
    """Makes runners over two fresh real etcds."""

    def make(change: Callable[[Target], None] = lambda target: None, **options: Any) -> Runner:
        members = [module_members(reference.etcd, flags=FLAGS) for _ in range(2)]
        for member in members:
            member.spawn()
        for member in members:
            member.wait_ready()
        tested = Target(members[1], **options)
        change(tested)
        return Runner(Target(members[0]), tested)

    return make


def ended(runner: Runner) -> None:
    for target in (runner.old, runner.new):
        target.member.kill()
    runner.close()


@pytest.mark.parametrize(("path", "change"), LIES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_false_answer_is_found(spare: Callable[..., Runner], path: str, change: Change) -> None:
    liar = Liar(path, change)
    runner = spare(calls=liar)
    try:
        with pytest.raises(Mismatch) as found:
            runner.generate(Generator(7), STEPS)
        assert liar.lied
        assert found.value.step is not None
        assert found.value.step.path == path
    finally:
        ended(runner)


class EventFault:
    """Sits in front of one target's watch streams and spoils one response with events."""

    def __init__(self, spoil: Callable[[Any], list[Any]]) -> None:
        self.spoil = spoil
        self.spoiled = False

    def install(self, target: Target) -> None:
        make = target.new_session

        def new_session() -> Any:
            session = make()
            dispatch = session._dispatch
            session._dispatch = lambda response: self._pass(dispatch, response)
            return session

        target.new_session = new_session  # type: ignore[method-assign]

    def _pass(self, dispatch: Callable[[Any], None], response: Any) -> None:
        if self.spoiled or not response.events:
            dispatch(response)
            return
        self.spoiled = True
        for changed in self.spoil(response):
            dispatch(changed)


def lose_an_event(response: Any) -> list[Any]:
    del response.events[0]
    return [response]


def double_an_event(response: Any) -> list[Any]:
    return [response, response]


def change_an_event(response: Any) -> list[Any]:
    response.events[0].kv.version += 1
    return [response]


def cancel_the_watch(response: Any) -> list[Any]:
    response.ClearField("events")
    response.canceled = True
    return [response]


@pytest.mark.parametrize(
    "spoil", [lose_an_event, double_an_event, change_an_event, cancel_the_watch]
)
def test_a_false_watch_is_found(
    spare: Callable[..., Runner], spoil: Callable[[Any], list[Any]], monkeypatch: Any
) -> None:
    monkeypatch.setattr("differential.watches.WAIT_SECONDS", 1.5)  # a lost event is waited for
    fault = EventFault(spoil)
    runner = spare(fault.install)
    try:
        with pytest.raises(Mismatch) as found:
            runner.generate(Generator(7), STEPS)
        assert fault.spoiled
        assert found.value.step is None or found.value.step.path in (WATCH_PATH, "", *BY_PATH)
    finally:
        ended(runner)


def test_shrinking_keeps_what_matters() -> None:
    """Two steps of a thousand make the last one fail: they remain, and little else."""

    def fails(steps: list[int]) -> bool:
        return {17, 600} <= set(steps) and steps[-1] == 999

    assert shrink(range(1000), fails, budget=200) == [17, 600, 999]


def test_shrinking_stays_within_its_budget() -> None:
    tries: list[int] = []

    def fails(steps: list[int]) -> bool:
        tries.append(len(steps))
        return True

    assert shrink(range(100), fails, budget=5) == [99]
    assert len(tries) <= 5
