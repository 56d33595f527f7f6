"""Who leads; whether one may still believe to; waiting until one has applied everything."""

from __future__ import annotations

import asyncio

import pytest
from members_kit import ME, TWO, Bench, member, on_a_loop

from kvorum import errors
from kvorum.membership import Member
from kvorum.server import catchup
from kvorum.types import Index, MemberID


@on_a_loop
async def test_a_leader_that_ticks_is_sure() -> None:
    bench = Bench()
    now = bench.loop.time()
    bench.leadership.ticked()
    assert bench.leadership.is_sure(now)
    assert not bench.leadership.is_sure(now + 0.5)
    bench.fresh = False  # nobody needs to be asked
    assert await bench.leadership.is_confirmed()


@on_a_loop
async def test_after_a_break_a_quorum_is_asked() -> None:
    """Also when the first thing that is noticed after it is a tick."""
    bench = Bench()
    bench.leadership._last_tick -= 0.4
    bench.leadership.ticked()
    assert not bench.leadership.is_sure(bench.loop.time())
    assert await bench.leadership.is_confirmed()
    assert bench.leadership.is_sure(bench.loop.time())


@on_a_loop
@pytest.mark.plain
async def test_a_break_while_a_quorum_is_asked_counts() -> None:
    bench = Bench()
    bench.leadership._last_tick -= 0.4
    bench.leadership.ticked()
    bench.fresh = False
    task = asyncio.ensure_future(bench.leadership.is_confirmed())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.leadership._last_tick -= 0.4
    bench.leadership.ticked()
    bench.fresh = True
    bench.reads.ask_again()
    assert await task
    assert not bench.leadership.is_sure(bench.loop.time())


@on_a_loop
async def test_who_asked_another_to_lead_asks_a_quorum_every_time() -> None:
    """The other may lead already, and who did so not have heard."""
    bench = Bench()
    bench.raft.handing_over = True
    for _ in range(2):
        assert not bench.leadership.is_sure(bench.loop.time())
        assert await bench.leadership.is_confirmed()
    bench.raft.handing_over = False  # another term
    assert bench.leadership.is_sure(bench.loop.time())


@on_a_loop
async def test_who_was_replaced_learns_it() -> None:
    bench = Bench([member(ME), member(TWO)])
    bench.leadership._last_tick -= 0.4
    task = asyncio.ensure_future(bench.leadership.is_confirmed())
    await asyncio.sleep(0)
    bench.raft.leader = TWO
    assert not await task
    assert not await bench.leadership.is_confirmed()


@on_a_loop
async def test_who_cannot_ask_does_not_believe() -> None:
    bench = Bench()
    bench.leadership._last_tick -= 0.4
    bench.reads.close(errors.Stopped)
    assert not await bench.leadership.is_confirmed()


@on_a_loop
async def test_waiting_for_a_leader() -> None:
    bench = Bench([member(ME), member(TWO)])
    bench.led_by(MemberID(0))
    task = asyncio.ensure_future(bench.leadership.leader(bench.loop.time() + 10))
    await asyncio.sleep(0)
    bench.led_by(MemberID(9))  # whom the list does not have yet
    await asyncio.sleep(0)
    assert not task.done()
    bench.led_by(TWO)
    assert (await task).id == TWO


@on_a_loop
async def test_a_leader_without_urls_is_none() -> None:
    bench = Bench([member(ME), Member(TWO, (), "two")])
    bench.led_by(TWO)
    with pytest.raises(errors.NoLeader):
        await bench.leadership.leader(bench.loop.time() + 10)


@on_a_loop
async def test_catching_up() -> None:
    bench = Bench()
    assert bench.catch_up.is_done()
    await bench.catch_up.until_done()
    bench.raft.committed = Index(5)
    tasks = [asyncio.ensure_future(bench.catch_up.until_done())]
    await asyncio.sleep(0)
    bench.raft.committed = Index(9)
    tasks.append(asyncio.ensure_future(bench.catch_up.until_done()))
    await asyncio.sleep(0)
    assert bench.catch_up.waiting
    bench.apply_to(5)
    await tasks[0]
    assert not tasks[1].done()
    assert bench.catch_up.waiting
    bench.apply_to(9)
    await tasks[1]
    assert not bench.catch_up.waiting


@on_a_loop
async def test_catching_up_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "PATIENCE", 0.02)
    bench = Bench()
    bench.raft.committed = Index(5)
    with pytest.raises(errors.TimeoutWaitAppliedIndex):
        await bench.catch_up.until_done()
    assert not bench.catch_up.waiting
