"""Requests to whichever member: forwarded, read, and given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.cluster import Refused, cluster_of
from support.embedded import story

from kvorum import errors
from kvorum.config import server as config_module
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.types import MsgType
from kvorum.server import applier as applier_module


@story
async def test_every_member_takes_writes_and_answers_them(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        await cluster.leader()
        for node in cluster.running:
            reply = await node.propose("put", pb.PutRequest(key=node.name.encode()))
            header = pb.PutResponse.FromString(reply).header
            assert (header.member_id, header.cluster_id) == (node.id, node.server.cluster.id)
        request = pb.PutRequest(key=b"k", lease=77)
        with pytest.raises(Refused, match=errors.LeaseNotFound.message):
            await cluster.running[1].propose("put", request)
        await cluster.agree()
        assert {node.server.store.rev for node in cluster.running} == {4}
        assert not any(node.server.proposer.waiting for node in cluster.running)
        assert not any(node.server.proposer.forwarded for node in cluster.running)


@story
@pytest.mark.plain
async def test_what_a_follower_forwarded_it_does_not_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = applier_module.decode_plain
    decoded: list[bytes] = []

    def watched(data: bytes) -> object:
        decoded.append(data)
        return decode(data)

    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        follower = cluster.followers(leader)[0]
        await cluster.until(
            "published", lambda: all(n.server.ready.is_set() for n in cluster.running)
        )
        await cluster.agree()
        monkeypatch.setattr(applier_module, "decode_plain", watched)
        await follower.put("k", "v")
        await cluster.agree()
        assert len(decoded) == 2  # by the two others


@story
async def test_a_read_anywhere_sees_what_was_acknowledged_anywhere(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        cluster.wire.delay = 0.004
        for number in range(10):
            for writer in cluster.running:
                await writer.put("k", f"{writer.name}{number}")
                for reader in cluster.running:
                    assert await reader.get("k") == f"{writer.name}{number}"
        assert leader.server.raft.is_leader


@story
async def test_many_reads_are_one_question(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        follower = cluster.followers(leader)[0]
        await follower.put("k", "v")
        before = cluster.wire.sent.get(MsgType.READ_INDEX, 0)
        first = [asyncio.create_task(follower.get("k")) for _ in range(100)]
        await asyncio.sleep(0)  # the first ones have been asked for, and the answer takes a while
        await asyncio.sleep(0)
        second = [asyncio.create_task(follower.get("k")) for _ in range(100)]
        assert set(await asyncio.gather(*first, *second)) == {"v"}
        assert cluster.wire.sent[MsgType.READ_INDEX] - before <= 2


@story
async def test_a_cut_off_leader_serves_no_stale_read(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old = await cluster.leader()
        await old.put("k", "old")
        cluster.wire.isolate(old.id)
        reading = asyncio.create_task(old.get("k"))
        new = await cluster.leader(*cluster.followers(old))
        await new.put("k", "new")
        assert not reading.done()
        cluster.wire.heal()
        assert await reading == "new"


@story
async def test_requests_wait_for_a_leader(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        old = await cluster.leader()
        follower, _ = cluster.followers(old)
        cluster.wire.isolate(old.id)
        await cluster.until("no leader", lambda: follower.server.raft.leader != old.id)
        putting = asyncio.create_task(follower.put("k", "v"))
        reading = asyncio.create_task(follower.get("nothing"))
        await putting
        assert await reading is None


@story
async def test_without_a_quorum_requests_run_out_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "REQUEST_BASE", 0.2)
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        for node in cluster.followers(leader):
            cluster.wire.isolate(node.id)
        requests = [node.put("k") for node in cluster.running]
        requests += [node.get("k") for node in cluster.running]
        for answer in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(answer, Refused)
            assert str(answer).startswith(errors.Timeout.message)
        cluster.wire.heal()
        await cluster.leader()
        await leader.put("k", "v")
        await cluster.agree()


@story
async def test_a_request_that_was_lost_with_a_leader_runs_out_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can know whether it was carried out, so that it is not tried again."""
    monkeypatch.setattr(config_module, "REQUEST_BASE", 0.6)
    async with cluster_of(tmp_path) as cluster:
        old = await cluster.leader()
        rest = cluster.followers(old)
        await cluster.until("ready", lambda: all(n.server.ready.is_set() for n in cluster.running))
        puts = [asyncio.create_task(node.put("k")) for node in rest]
        cluster.wire.delay = 10.0
        await cluster.until("sent", lambda: all(n.server.proposer.forwarded for n in rest))
        cluster.wire.isolate(old.id)
        cluster.wire.delay = 0.0
        for answer in await asyncio.gather(*puts, return_exceptions=True):
            assert isinstance(answer, Refused)
            assert str(answer).startswith(errors.Timeout.message)
        assert not any(n.server.proposer.forwarded for n in rest)
        assert (await cluster.leader(*rest)).server.store.rev == 1
