"""What a learner does not serve, and nobody without a leader. The states are made by hand, as a
member alone in its cluster knows neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.embedded import CALL_SECONDS, Client, Refused, ending, read, serving, status, story
from support.rpc import MEMBER_LIST, PUT, RANGE, STATUS

from kvorum import errors
from kvorum.embed import Member
from kvorum.errors import Code
from kvorum.h2 import RpcError
from kvorum.pb import etcdserverpb as pb
from kvorum.types import MemberID

WATCH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
INSIST = (("hasleader", "true"),)
CREATE = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")).SerializeToString()


def set_learner(member: Member, learner: bool) -> None:
    server = member.server
    members = server.cluster.members
    members[server.id] = replace(members[server.id], is_learner=learner)
    server._changed()


def set_leader(member: Member, leader: int) -> None:
    member.server.raft.leader = MemberID(leader)
    member.server._changed()


@story
async def test_a_learner_answers_what_needs_no_consensus(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        await client.put(b"k", b"v")
        set_learner(member, True)
        refused = status(errors.NotSupportedForLearner)
        assert await client.error(PUT, key=b"k") == refused
        assert await client.error(RANGE, key=b"k") == refused
        assert await client.error(MEMBER_LIST) == refused
        assert (await client.call(STATUS)).isLearner
        found = await client.call(RANGE, key=b"k", serializable=True)
        assert found.kvs[0].value == b"v"
        assert (await client.raw_error(RANGE.path, b"\xff"))[0] is Code.INTERNAL
        for path in (WATCH, KEEP_ALIVE):
            stream = await client.stream(path)
            assert await ending(stream) == refused
        snapshot = await client.channel.server_stream("/etcdserverpb.Maintenance/Snapshot", b"")
        assert await ending(snapshot) == (Code.OK, "")
        set_learner(member, False)  # it was promoted
        await client.put(b"k", b"w")
        assert (await client.call(RANGE, key=b"k")).kvs[0].value == b"w"


async def insisting(client: Client) -> tuple[Code, str]:
    """The end of a range by a client that insists on a leader."""
    request = pb.RangeRequest(key=b"k", serializable=True).SerializeToString()
    try:
        await client.channel.unary(RANGE.path, request, timeout=CALL_SECONDS, metadata=INSIST)
    except RpcError as error:
        return Code(error.code), error.message
    return Code.OK, ""


@story
async def test_who_insists_on_a_leader_is_refused_without_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as (member, client):
        assert await insisting(client) == (Code.OK, "")
        set_leader(member, 0)
        assert await insisting(client) == status(errors.NoLeader)
        await client.call(RANGE, key=b"k", serializable=True)  # who does not insist is answered
        stream = await client.channel.stream(WATCH, metadata=INSIST)
        assert await ending(stream) == status(errors.NoLeader)
        set_learner(member, True)
        with pytest.raises(Refused, match=errors.NotSupportedForLearner.message):
            await client.call(PUT, key=b"k")
        set_learner(member, False)
        set_leader(member, member.server.id)
        assert await insisting(client) == (Code.OK, "")


@story
async def test_streams_of_those_who_insist_end_when_there_is_no_leader_for_long(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, heartbeat_interval=10, election_timeout=50) as (member, client):
        streams = {}
        for name, metadata in (("insists", INSIST), ("does not", ())):
            streams[name] = stream = await client.channel.stream(WATCH, metadata=metadata)
            await stream.send(CREATE)
            assert (await read(stream, pb.WatchResponse)).created
        assert member.server.hub.stream_total == 2
        for timer in member.server._timers.values():
            timer.cancel()  # or it would soon find that it leads after all
        set_leader(member, 0)
        assert await ending(streams["insists"]) == status(errors.NoLeader)
        assert member.server.hub.stream_total == 1
        set_leader(member, member.server.id)
        await client.put(b"k")
        assert len((await read(streams["does not"], pb.WatchResponse)).events) == 1
        streams["does not"].cancel()
