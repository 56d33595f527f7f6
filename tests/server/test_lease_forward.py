"""Leases asked about at a member that does not lead, and at one that does but is not sure of it."""

from __future__ import annotations

import asyncio

import pytest
from members_kit import ME, THREE, TWO, Asked, Bench, Reply, member, on_a_loop, url_of

from kvorum import errors
from kvorum.lease.lessor import Lessor, NotPrimary
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import leasepb
from kvorum.server.awaited import RequestFailed
from kvorum.server.cluster import to_leader
from kvorum.server.cluster.lease_forward import Leases
from kvorum.types import Index, LeaseID, MemberID

LEASE = LeaseID(7)


class LeaseBench(Bench):
    """``clock`` is the lessor's."""

    def __init__(
        self, *, timeout: float = 5.0, fast: bool = True, checkpoints: bool = False
    ) -> None:
        super().__init__([member(ME), member(TWO)], timeout=timeout)
        self.clock = 0.0
        self.lessor = Lessor(lambda key, value: None, lambda key: None, checkpoints=checkpoints)
        self.leases = Leases(
            lessor=self.lessor,
            proposer=self.proposer,
            leadership=self.leadership,
            catch_up=self.catch_up,
            to_leader=self.to_leader,
            fast=fast,
            now=lambda: self.clock,
            loop=self.loop,
        )

    def lead(self) -> None:
        self.lessor.promote(self.clock, 1.0)
        self.led_by(ME)


def following() -> LeaseBench:
    bench = LeaseBench()
    bench.led_by(TWO)
    return bench


def kept(ttl: int, lease: int = LEASE) -> Reply:
    return Reply(200, pb.LeaseKeepAliveResponse(ID=lease, TTL=ttl).SerializeToString())


@on_a_loop
async def test_a_follower_has_the_leader_renew() -> None:
    bench = following()
    bench.http.answer = lambda asked: kept(30)
    assert await bench.leases.renew(LEASE) == 30
    body = b"\x08\x07"
    headers = {"Content-Type": "application/protobuf"}
    assert bench.http.asked == [Asked("POST", url_of(TWO), "/leases", headers, body)]


@on_a_loop
async def test_the_leader_knows_no_such_lease() -> None:
    bench = following()
    bench.http.answer = lambda asked: Reply(404, b"lease not found\n")
    assert await bench.leases.renew(LEASE) == 0
    found = await bench.leases.time_to_live(LEASE, keys=True)
    assert found == pb.LeaseTimeToLiveResponse(ID=LEASE, TTL=-1)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(400, b"not a primary lessor\n"),
        Reply(408, b"waiting"),
        Reply(500, b""),
        Reply(200, b"\xff"),
        kept(30, lease=8),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
@on_a_loop
async def test_what_says_nothing_is_tried_again(
    reply: Reply | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_leader, "PAUSE", 0.0)
    bench = following()
    replies = [reply, reply, kept(30)]
    bench.http.answer = lambda asked: replies.pop(0)
    assert await bench.leases.renew(LEASE) == 30


@on_a_loop
async def test_every_url_of_the_leader_is_tried() -> None:
    bench = following()
    bench.cluster.set_peer_urls(TWO, ["http://gone:1", "http://there:1"])
    bench.http.answer = lambda asked: kept(3) if "there" in asked.url else OSError()
    assert await bench.leases.renew(LEASE) == 3
    assert [asked.url for asked in bench.http.asked] == ["http://gone:1", "http://there:1"]


@on_a_loop
async def test_nobody_answers_in_time() -> None:
    bench = LeaseBench(timeout=0.1)
    bench.led_by(TWO)
    with pytest.raises(errors.Timeout):
        await bench.leases.renew(LEASE)
    with pytest.raises(errors.Timeout):
        await bench.leases.time_to_live(LEASE, keys=False)
    bench.led_by(MemberID(0))
    with pytest.raises(errors.NoLeader):
        await bench.leases.renew(LEASE)


@on_a_loop
async def test_a_leader_that_is_cut_off_is_not_waited_for() -> None:
    """It would never answer, and the next leader could."""
    bench = following()
    bench.cluster.add(member(THREE))
    never = asyncio.get_running_loop().create_future()

    async def request(method: str, url: str, path: str, **fields: object) -> Reply:
        if url == url_of(TWO):
            await never
        return kept(30)

    bench.http.request = request  # type: ignore[assignment,method-assign]
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    for leader in (TWO, MemberID(0), THREE):
        await asyncio.sleep(0.01)
        assert not task.done()
        bench.led_by(leader)
    assert await task == 30


@on_a_loop
async def test_who_gives_up_leaves_nothing_behind() -> None:
    bench = following()
    asked = asyncio.Event()

    async def request(method: str, url: str, path: str, **fields: object) -> Reply:
        asked.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    bench.http.request = request  # type: ignore[assignment,method-assign]
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asked.wait()
    task.cancel()
    await asyncio.wait([task])
    assert bench.to_leader._under_way == {}
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@on_a_loop
async def test_no_more_wait_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_leader, "MAX_WAITING", 1)
    bench = following()
    bench.led_by(MemberID(0))
    waiting = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asyncio.sleep(0)
    with pytest.raises(errors.RequestTooManyRequests):
        await bench.leases.renew(LEASE)
    waiting.cancel()
    await asyncio.wait([waiting])
    bench.led_by(TWO)
    bench.http.answer = lambda asked: kept(3)
    assert await bench.leases.renew(LEASE) == 3


@on_a_loop
async def test_a_leader_renews_itself() -> None:
    bench = LeaseBench()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.lead()
    bench.clock = 20.0
    assert await bench.leases.renew(LEASE) == 30
    assert await bench.leases.renew(LeaseID(8)) == 0
    found = await bench.leases.time_to_live(LEASE, keys=False)
    assert (found.TTL, found.grantedTTL) == (30, 30)
    assert bench.http.asked == []


@on_a_loop
async def test_a_new_leader_renews_once_its_lessor_is_primary() -> None:
    bench = following()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.led_by(ME)
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asyncio.sleep(0.01)
    assert not task.done()
    bench.lessor.promote(0.0, 1.0)
    assert await task == 30


@on_a_loop
async def test_a_leader_that_never_becomes_primary() -> None:
    bench = LeaseBench(timeout=0.08)
    bench.led_by(ME)
    with pytest.raises(errors.Timeout):
        await bench.leases.renew(LEASE)


@on_a_loop
async def test_an_unknown_lease_may_be_on_its_way() -> None:
    bench = LeaseBench()
    bench.lead()
    bench.raft.committed = Index(5)
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asyncio.sleep(0)
    assert not task.done()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.apply_to(5)
    assert await task == 30


@pytest.mark.parametrize("fast", [True, False])
@on_a_loop
async def test_a_known_lease_waits_only_without_the_gate(fast: bool) -> None:
    bench = LeaseBench(fast=fast)
    bench.lead()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.raft.committed = Index(5)
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asyncio.sleep(0)
    assert task.done() is fast
    bench.apply_to(5)
    assert await task == 30


@on_a_loop
async def test_who_cannot_confirm_that_it_leads_does_not_renew() -> None:
    """It may have been replaced, and the lease be gone."""
    bench = LeaseBench()
    bench.lead()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.leadership._last_tick -= 1.0
    bench.reads.close(errors.Stopped)
    with pytest.raises(RequestFailed, match="not a primary lessor"):
        await bench.leases.renew(LEASE)


@on_a_loop
async def test_a_renewal_during_a_handover_goes_to_the_next_leader() -> None:
    """As the quorum tells who is asked whether it still leads."""
    bench = LeaseBench()
    bench.lead()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.raft.handing_over = True
    bench.http.answer = lambda asked: kept(29)
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asyncio.sleep(0)
    assert not task.done()
    bench.raft.handing_over = False
    bench.led_by(TWO)
    assert await task == 29


@on_a_loop
async def test_a_renewal_during_a_handover_that_came_to_nothing() -> None:
    bench = LeaseBench()
    bench.lead()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.raft.handing_over = True
    assert await bench.leases.renew(LEASE) == 30


@on_a_loop
async def test_a_renewal_that_came_too_late_waits_for_the_end() -> None:
    bench = LeaseBench()
    bench.lead()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.clock = 40.0
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asyncio.sleep(0)
    assert not task.done()
    bench.lessor.revoke(LEASE)
    assert await task == 0


@on_a_loop
async def test_who_loses_the_lead_meanwhile_asks_the_next_leader() -> None:
    bench = LeaseBench()
    bench.lead()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.clock = 40.0
    bench.http.answer = lambda asked: kept(29)
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    await asyncio.sleep(0)
    bench.lessor.demote()
    bench.led_by(TWO)
    assert await task == 29


@on_a_loop
async def test_a_checkpoint_is_forgotten_first() -> None:
    bench = LeaseBench(checkpoints=True)
    bench.lead()
    bench.lessor.grant(LEASE, 1000, 0.0)
    bench.lessor.checkpoint(LEASE, 500, 0.0)
    task = asyncio.ensure_future(bench.leases.renew(LEASE))
    (proposal,) = await bench.proposed()
    assert proposal.kind == "lease_checkpoint"
    assert proposal.request.checkpoints[0].remaining_TTL == 0
    bench.lessor.checkpoint(LEASE, 0, 0.0)
    proposal.caller.reply(b"")
    assert await task == 1000


@on_a_loop
async def test_the_remaining_time_comes_from_the_leader() -> None:
    bench = following()
    reply = leasepb.LeaseInternalResponse()
    found = reply.LeaseTimeToLiveResponse
    found.header.SetInParent()
    found.ID, found.TTL, found.grantedTTL = LEASE, 12, 30
    found.keys.append(b"k")
    bench.http.answer = lambda asked: Reply(200, reply.SerializeToString())
    answer = await bench.leases.time_to_live(LEASE, keys=True)
    assert not answer.HasField("header")
    assert (answer.TTL, answer.grantedTTL, list(answer.keys)) == (12, 30, [b"k"])
    (asked,) = bench.http.asked
    assert (asked.path, asked.body) == ("/leases/internal", b"\x0a\x04\x08\x07\x10\x01")


@on_a_loop
async def test_who_leads_meanwhile_looks_it_up() -> None:
    bench = following()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.led_by(MemberID(0))
    task = asyncio.ensure_future(bench.leases.time_to_live(LEASE, keys=False))
    await asyncio.sleep(0)
    bench.lead()
    assert (await task).grantedTTL == 30


@on_a_loop
async def test_a_leader_that_is_not_primary_yet_tells_no_time() -> None:
    bench = following()
    bench.lessor.grant(LEASE, 30, 0.0)
    bench.led_by(ME)
    with pytest.raises(errors.LeaderChanged):
        await bench.leases.time_to_live(LEASE, keys=False)


@on_a_loop
async def test_only_a_leader_renews_for_others() -> None:
    bench = following()
    with pytest.raises(NotPrimary):
        await bench.leases.renew_here(LEASE)
