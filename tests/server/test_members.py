"""Membership changes before they go into the log, and what is told of them afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from members_kit import ME, THREE, TWO, Asked, Bench, Reply, member, on_a_loop, url_of

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.membership import Member, changes, member_id
from kvorum.raft.types import ConfChange, ConfChangeType
from kvorum.server.awaited import RequestFailed
from kvorum.server.cluster.members import (
    TRANSFER_TIMEOUT_TEXT,
    checked_urls,
    members_from_json,
    members_to_json,
)
from kvorum.server.cluster.to_leader import TryAgain
from kvorum.types import Index, MemberID

NEW = ["http://127.0.0.1:9"]
Step = Callable[[Bench], Awaitable[Any]]


async def carried_out(bench: Bench, working: Awaitable[Any]) -> tuple[ConfChange, Any]:
    """The change that was proposed, and what came of it when it was applied."""
    task = asyncio.ensure_future(working)
    change, caller = await bench.change()
    caller.reply(b"")
    return change, await task


@on_a_loop
async def test_a_member_is_added_with_the_id_that_etcd_would_give_it() -> None:
    bench = Bench()
    urls = ["http://b:2 ", "http://a:1"]
    change, (added, members) = await carried_out(bench, bench.members.add(urls, learner=False))
    identity = member_id(["http://a:1", "http://b:2"], "", unix_seconds=1_700_000_000)
    assert added == Member(identity, ("http://a:1", "http://b:2"))
    assert change == changes.adding(added)
    assert change.type is ConfChangeType.ADD_NODE
    assert members == bench.cluster.sorted()


@on_a_loop
async def test_a_learner_is_added() -> None:
    bench = Bench()
    change, (added, _) = await carried_out(bench, bench.members.add(NEW, learner=True))
    assert (change.type, added.is_learner) == (ConfChangeType.ADD_LEARNER_NODE, True)


@on_a_loop
async def test_a_member_is_updated_and_removed() -> None:
    bench = Bench([member(ME), member(TWO)])
    change, members = await carried_out(bench, bench.members.update(TWO, NEW))
    assert change == changes.updating(Member(TWO, tuple(NEW)))
    assert members == bench.cluster.sorted()
    change, _ = await carried_out(bench, bench.members.remove(TWO))
    assert change == changes.removing(TWO)


@on_a_loop
async def test_what_the_log_refuses_is_told() -> None:
    bench = Bench()
    task = asyncio.ensure_future(bench.members.remove(THREE))
    _, caller = await bench.change()
    caller.fail(errors.MemberNotFound.code, errors.MemberNotFound.message)
    with pytest.raises(errors.MemberNotFound):
        await task


@pytest.mark.parametrize(
    "urls",
    [
        [],
        [""],
        ["127.0.0.1:1"],
        ["not-an-url"],
        ["ftp://a:1"],
        ["http://a"],
        ["http://a:1/path"],
        ["http://a:1", "bad"],
        ["http://a:99999"],
    ],
)
@on_a_loop
async def test_bad_urls(urls: list[str]) -> None:
    bench = Bench()
    with pytest.raises(errors.MemberBadURLs):
        await bench.members.add(urls, learner=False)
    with pytest.raises(errors.MemberBadURLs):
        await bench.members.update(ME, urls)
    assert bench.raft.changes == []


def test_urls_of_unix_sockets() -> None:
    assert checked_urls(["unix://x:1", "http://a:1"]) == ("http://a:1", "unix://x:1")


async def refusal(bench: Bench, working: Awaitable[Any]) -> type[EtcdError] | None:
    """How a change is refused; None if it gets into the log."""
    task = asyncio.ensure_future(working)
    proposed = asyncio.ensure_future(bench.change())
    await asyncio.wait([task, proposed], return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        return None
    proposed.cancel()
    error = task.exception()
    assert isinstance(error, EtcdError)
    return type(error)


@pytest.mark.parametrize(
    ("learner", "started", "connected", "seconds", "refused"),
    [
        (False, True, True, 6, None),
        (False, False, True, 6, errors.MemberNotEnoughStarted),
        (True, False, True, 6, None),
        (False, True, False, 6, errors.Unhealthy),
        (True, True, False, 6, errors.Unhealthy),
        (False, True, True, 4, errors.Unhealthy),
    ],
)
@on_a_loop
async def test_adding_to_two(
    learner: bool, started: bool, connected: bool, seconds: int, refused: type[EtcdError] | None
) -> None:
    bench = Bench([member(ME), member(TWO, started=started)])
    if connected:
        bench.connect(TWO, seconds=seconds)
    assert await refusal(bench, bench.members.add(NEW, learner=learner)) is refused


@pytest.mark.parametrize(
    ("leaving", "down", "unstarted", "refused"),
    [
        (TWO, (), (), None),
        (TWO, (TWO,), (), None),
        (TWO, (THREE,), (), errors.Unhealthy),
        (ME, (THREE,), (), errors.Unhealthy),
        (TWO, (), (THREE,), errors.MemberNotEnoughStarted),
        (THREE, (THREE,), (THREE,), None),
        (MemberID(9), (), (), None),
    ],
)
@on_a_loop
async def test_removing_of_three(
    leaving: MemberID,
    down: tuple[MemberID, ...],
    unstarted: tuple[MemberID, ...],
    refused: type[EtcdError] | None,
) -> None:
    bench = Bench([member(m, started=m not in unstarted) for m in (ME, TWO, THREE)])
    bench.connect(*({TWO, THREE} - set(down)))
    assert await refusal(bench, bench.members.remove(leaving)) is refused


@on_a_loop
async def test_a_learner_may_always_be_removed() -> None:
    bench = Bench([member(ME), member(TWO, started=False), member(THREE, learner=True)])
    assert await refusal(bench, bench.members.remove(THREE)) is None


@on_a_loop
async def test_without_the_strict_check_everything_goes() -> None:
    bench = Bench([member(ME), member(TWO, started=False)], strict=False)
    assert await refusal(bench, bench.members.add(NEW, learner=False)) is None
    assert await refusal(bench, bench.members.remove(ME)) is None


# Promotion


def with_learner(*, match: int = 90, leader_match: int = 100, **settings: Any) -> Bench:
    bench = Bench([member(ME), member(TWO, learner=True)], **settings)
    bench.raft.match = {ME: leader_match, TWO: match}
    return bench


@on_a_loop
async def test_a_learner_that_has_caught_up_is_promoted() -> None:
    bench = with_learner(match=90)
    change, members = await carried_out(bench, bench.members.promote(TWO))
    assert change == changes.promoting(TWO)
    assert members == bench.cluster.sorted()
    assert bench.metrics.promote_successes.value == 1


@pytest.mark.parametrize(
    ("target", "match", "error", "reason"),
    [
        (TWO, 89, errors.LearnerNotReady, errors.LearnerNotReady.message),
        (TWO, 0, errors.LearnerNotReady, errors.LearnerNotReady.message),
        (THREE, 0, errors.MemberNotFound, "membership: ID not found"),
    ],
)
@on_a_loop
async def test_what_may_not_be_promoted(
    target: MemberID, match: int, error: type[EtcdError], reason: str
) -> None:
    bench = with_learner(match=match)
    assert await refusal(bench, bench.members.promote(target)) is error
    assert bench.metrics.promote_failures.with_labels(reason).value == 1
    assert bench.http.asked == []


@on_a_loop
async def test_too_few_run_for_a_promotion() -> None:
    members = [
        member(ME),
        member(THREE, started=False),
        member(MemberID(4), started=False),
        member(TWO, learner=True),
    ]
    bench = Bench(members)
    bench.raft.match = {ME: 1, TWO: 1}
    assert await refusal(bench, bench.members.promote(TWO)) is errors.MemberNotEnoughStarted
    bench = Bench(members, strict=False)
    bench.raft.match = {ME: 1, TWO: 1}
    assert await refusal(bench, bench.members.promote(TWO)) is None


@on_a_loop
async def test_promotion_waits_for_what_is_committed() -> None:
    bench = with_learner()
    bench.raft.committed = Index(7)
    task = asyncio.ensure_future(bench.members.promote(TWO))
    await asyncio.sleep(0)
    assert bench.raft.changes == []
    bench.apply_to(7)
    _, caller = await bench.change()
    caller.reply(b"")
    await task


def follower(*, timeout: float = 5.0) -> Bench:
    bench = Bench([member(ME), member(TWO), member(THREE, learner=True)], timeout=timeout)
    bench.led_by(TWO)
    return bench


@on_a_loop
async def test_a_follower_has_the_leader_promote() -> None:
    bench = follower()
    members = [member(TWO), member(THREE)]
    bench.http.answer = lambda asked: Reply(200, members_to_json(members))
    assert await bench.members.promote(THREE, token="secret") == members
    asked = Asked(
        "POST", url_of(TWO), f"/members/promote/{THREE}", {"Authorization": "secret"}, b""
    )
    assert bench.http.asked == [asked]
    assert bench.metrics.promote_successes.value == 0


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(404, b"membership: ID not found\n"), errors.MemberNotFound),
        (Reply(412, errors.LearnerNotReady.message.encode()), errors.LearnerNotReady),
        (Reply(412, b"membership: can only promote a learner member"), errors.MemberNotLearner),
    ],
)
@on_a_loop
async def test_what_the_leader_refuses(reply: Reply, error: type[EtcdError]) -> None:
    bench = follower()
    bench.http.answer = lambda asked: reply
    with pytest.raises(error):
        await bench.members.promote(THREE)
    assert len(bench.http.asked) == 1


@pytest.mark.parametrize(
    "reply",
    [Reply(500, b"{}"), Reply(412, b"other"), Reply(200, b"x"), Reply(200, b"{}"), OSError()],
)
@on_a_loop
async def test_what_says_nothing_is_tried_again(reply: Reply | OSError) -> None:
    bench = follower()
    replies: list[Reply | Exception] = [reply, Reply(200, b"[]")]
    bench.http.answer = lambda asked: replies.pop(0)
    assert await bench.members.promote(THREE) == []


@on_a_loop
async def test_the_leader_is_given_up_in_the_end() -> None:
    bench = follower(timeout=0.1)
    with pytest.raises(errors.Timeout):
        await bench.members.promote(THREE)
    bench = follower(timeout=0.1)
    bench.led_by(MemberID(0))
    with pytest.raises(errors.NoLeader):
        await bench.members.promote(THREE)


@on_a_loop
async def test_who_leads_meanwhile_promotes() -> None:
    bench = follower()
    bench.raft.match = {ME: 1, THREE: 1}
    bench.led_by(MemberID(0))
    task = asyncio.ensure_future(bench.members.promote(THREE))
    await asyncio.sleep(0)
    bench.led_by(ME)
    change, caller = await bench.change()
    caller.reply(b"")
    await task
    assert change == changes.promoting(THREE)


def test_members_as_json() -> None:
    members = [member(ME), member(TWO, learner=True, started=False)]
    data = members_to_json(members)
    assert data == (
        b'[{"id":161,"peerURLs":["http://a1.test:2380"],"name":"one"},'
        b'{"id":178,"peerURLs":["http://b2.test:2380"],"isLearner":true}]\n'
    )
    assert members_from_json(data) == members
    for bad in (b"", b"[1]", b"{", b'[{"id":"x"}]', b"null"):
        with pytest.raises(TryAgain):
            members_from_json(bad)


# The leader


@on_a_loop
async def test_the_leader_is_moved() -> None:
    bench = Bench([member(ME), member(TWO)])
    task = asyncio.ensure_future(bench.members.move_leader(TWO))
    await asyncio.sleep(0)
    assert bench.raft.transfers == [TWO]
    bench.led_by(MemberID(0))
    await asyncio.sleep(0)
    assert not task.done()
    bench.led_by(TWO)
    await task


@pytest.mark.parametrize(
    ("leader", "target", "error"),
    [
        (TWO, TWO, errors.NotLeader),
        (MemberID(0), TWO, errors.NotLeader),
        (ME, THREE, errors.BadLeaderTransferee),
        (ME, MemberID(9), errors.BadLeaderTransferee),
    ],
)
@on_a_loop
async def test_who_cannot_be_made_the_leader(
    leader: MemberID, target: MemberID, error: type[EtcdError]
) -> None:
    bench = Bench([member(ME), member(TWO), member(THREE, learner=True)])
    bench.led_by(leader)
    with pytest.raises(error):
        await bench.members.move_leader(target)
    assert bench.raft.transfers == []


@on_a_loop
async def test_a_move_that_takes_too_long() -> None:
    bench = Bench([member(ME), member(TWO)], timeout=0.05)
    with pytest.raises(RequestFailed, match=TRANSFER_TIMEOUT_TEXT) as failed:
        await bench.members.move_leader(TWO)
    assert failed.value.code == errors.Code.UNKNOWN


@on_a_loop
async def test_who_leads_already() -> None:
    bench = Bench([member(ME), member(TWO)])
    await bench.members.move_leader(ME)
