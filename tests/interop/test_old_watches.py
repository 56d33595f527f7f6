"""What etcd before 3.5.8 sends watches, ours does not, and `chaos.serving` excuses: everything
again when a snapshot is installed on the member that serves a watch; a notice before what it says
to have come."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop
from chaos.cluster import Cluster, Settings
from chaos.cutting import IDLE, cut_log
from chaos.members import ChaosMember
from chaos.serving import RESENDS_BEFORE
from chaos.watchers import ASKED_FOR
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


async def notice_and_events(cluster: Cluster) -> list[str]:
    """In what order they come to a watch of the past that asks for a notice at once."""
    member = await cluster.leader()
    assert member is not None
    await put(member, *FIRST)
    create = pb.WatchCreateRequest(key=b"k", start_revision=1)
    asked = pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString()
    came: list[str] = []
    async with member.channel() as channel:
        stream = await channel.stream(words.WATCH, timeout=None)
        async with stream, asyncio.timeout(20.0):
            await stream.send(pb.WatchRequest(create_request=create).SerializeToString())
            await stream.send(asked)
            while "events" not in came:
                made = pb.WatchResponse.FromString(await stream.recv() or b"")
                if made.events:
                    came.append("events")
                elif made.watch_id == ASKED_FOR and made.header.revision >= len(FIRST):
                    came.append("notice")
    return came


@pytest.mark.parametrize(
    ("binary", "order"),
    [("etcd", ["notice", "events"]), ("kvorum", ["events"])],
    indirect=["binary"],
    ids=["etcd", "kvorum"],
)
def test_a_notice_and_what_it_says_to_have_come(
    tmp_path: Path, binary: Path, order: list[str]
) -> None:
    async def told() -> list[str]:
        cluster = Cluster(tmp_path, {"a": binary}, None, Settings())
        try:
            await cluster.start()
            return await notice_and_events(cluster)
        finally:
            await cluster.close()

    assert uvloop.run(told()) == order
