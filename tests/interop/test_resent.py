"""What a watch is sent when a snapshot is installed on the member that serves it: by ours nothing
that it has; by etcd 3.5.1 everything again. It is why `chaos.serving` excuses that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop
from chaos.cluster import Cluster, Settings
from chaos.cutting import IDLE, cut_log
from chaos.members import ChaosMember
from chaos.serving import RESENDS_BEFORE
from support.binaries import Binaries, etcd_release
from support.wait import wait_for

from kvorum.h2 import StreamCall
from kvorum.pb import etcdserverpb as pb
from sim import words

WINDOW = 600
"""More messages than a leader sends without an answer; etcd's limit is 512."""
FIRST = [b"1", b"2", b"3"]


@pytest.fixture
def binary(request: pytest.FixtureRequest) -> Path:
    if request.param == "kvorum":
        path: Path = request.getfixturevalue("kvorum")
        return path
    reference: Binaries = request.getfixturevalue("reference")
    if etcd_release(reference.etcd) >= RESENDS_BEFORE:
        pytest.skip("an etcd that has it mended")
    return reference.etcd


async def put(leader: ChaosMember, *values: bytes) -> None:
    async with leader.channel() as channel:
        for value in values:
            request = pb.PutRequest(key=b"k", value=value).SerializeToString()
            await channel.unary(words.PUT, request, timeout=5.0)


async def values(stream: StreamCall, last: bytes) -> list[bytes]:
    """What a watch is sent up to some value."""
    found: list[bytes] = []
    async with asyncio.timeout(20.0):
        while not found or found[-1] != last:
            message = await stream.recv()
            assert message is not None
            found += [each.kv.value for each in pb.WatchResponse.FromString(message).events]
    return found


async def fall_behind(follower: ChaosMember, leader: ChaosMember, settings: Settings) -> None:
    """It stands still, with no more on the way to it than a window of single entries, until the
    leader's log has gone on past all of that; and then it is sent a snapshot."""
    follower.pause()
    async with leader.channel() as channel:
        for _ in range(WINDOW):
            await channel.unary(words.DELETE, IDLE, timeout=5.0)
    await cut_log(leader, settings)
    follower.resume()
    await asyncio.to_thread(
        wait_for, lambda: "applied snapshot" in follower.log_text(), "snapshot applied"
    )


async def sent(cluster: Cluster) -> list[bytes]:
    """To a watch at a follower that falls behind, and then hears of one more write."""
    leader = await cluster.leader()
    assert leader is not None
    follower = next(member for member in cluster.all if member is not leader)
    create = pb.WatchCreateRequest(key=b"k")
    async with follower.channel() as channel:
        stream = await channel.stream(words.WATCH, timeout=None)
        async with stream:
            await stream.send(pb.WatchRequest(create_request=create).SerializeToString())
            assert pb.WatchResponse.FromString(await stream.recv() or b"").created
            await put(leader, *FIRST)
            before = await values(stream, FIRST[-1])
            await fall_behind(follower, leader, cluster.settings)
            await put(leader, b"last")
            return before + await values(stream, b"last")


@pytest.mark.parametrize(
    ("binary", "again"),
    [("etcd", FIRST), ("kvorum", [])],
    indirect=["binary"],
    ids=["etcd", "kvorum"],
)
def test_a_watch_over_a_snapshot(tmp_path: Path, binary: Path, again: list[bytes]) -> None:
    async def told() -> list[bytes]:
        cluster = Cluster(tmp_path, dict.fromkeys("abc", binary), None, Settings())
        for member in cluster.all:
            member.flags.append("--unsafe-no-fsync")
        try:
            await cluster.start()
            return await sent(cluster)
        finally:
            await cluster.close()

    assert uvloop.run(told()) == [*FIRST, *again, b"last"]
