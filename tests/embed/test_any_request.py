"""Whatever a client sends: the member answers, goes on, and can start again.

An entry of the log that cannot be applied would end the member at every start; so what is let into
the log must be what can be read from it and carried out.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from support.embedded import Client, config_of, ending, member_on, story
from support.rpc import ALARM, HASH_KV, RANGE

from kvorum.api.health import HealthService
from kvorum.api.services import build_methods
from kvorum.h2 import RpcError
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import healthpb

REQUESTS = 1500
SEEDS = [1, 2]
INTEGERS = [0, 0, 1, 2, 3, 5, -1, 100, 2**31, 2**63 - 1, -(2**63)]
TEXTS = [b"", b"a", b"b", b"\0", b"\xff", b"a\0", b"k" * 300, b"\xff" * 40]

UNARY = {
    "/etcdserverpb.KV/Range": pb.RangeRequest,
    "/etcdserverpb.KV/Put": pb.PutRequest,
    "/etcdserverpb.KV/DeleteRange": pb.DeleteRangeRequest,
    "/etcdserverpb.KV/Txn": pb.TxnRequest,
    "/etcdserverpb.KV/Compact": pb.CompactionRequest,
    "/etcdserverpb.Lease/LeaseGrant": pb.LeaseGrantRequest,
    "/etcdserverpb.Lease/LeaseRevoke": pb.LeaseRevokeRequest,
    "/etcdserverpb.Lease/LeaseTimeToLive": pb.LeaseTimeToLiveRequest,
    "/etcdserverpb.Lease/LeaseLeases": pb.LeaseLeasesRequest,
    "/etcdserverpb.Maintenance/Alarm": pb.AlarmRequest,
    "/etcdserverpb.Maintenance/Status": pb.StatusRequest,
    "/etcdserverpb.Maintenance/Hash": pb.HashRequest,
    "/etcdserverpb.Maintenance/HashKV": pb.HashKVRequest,
    "/etcdserverpb.Maintenance/MoveLeader": pb.MoveLeaderRequest,
    "/etcdserverpb.Maintenance/Downgrade": pb.DowngradeRequest,
    "/etcdserverpb.Cluster/MemberList": pb.MemberListRequest,
    "/etcdserverpb.Cluster/MemberAdd": pb.MemberAddRequest,
    "/etcdserverpb.Cluster/MemberRemove": pb.MemberRemoveRequest,
    "/etcdserverpb.Cluster/MemberUpdate": pb.MemberUpdateRequest,
    "/etcdserverpb.Cluster/MemberPromote": pb.MemberPromoteRequest,
    "/grpc.health.v1.Health/Check": healthpb.HealthCheckRequest,
}
STREAMS = {
    "/etcdserverpb.KV/RangeStream": pb.RangeRequest,
    "/etcdserverpb.Watch/Watch": pb.WatchRequest,
    "/etcdserverpb.Lease/LeaseKeepAlive": pb.LeaseKeepAliveRequest,
    "/grpc.health.v1.Health/Watch": healthpb.HealthCheckRequest,
}
OFTEN = [*UNARY, *["/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn"] * 4]


class Maker:
    """Messages by chance: any field may be there, with any value that its type can hold."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def message(self, kind: Any, depth: int = 0) -> Any:
        message = kind()
        for field in kind.DESCRIPTOR.fields:
            if self.chance.random() < 0.5:
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None:
            self._fill_message(message, field, depth)
            return
        value = self._value(field)
        if field.is_repeated:
            getattr(message, field.name).extend([value] * self.chance.randrange(3))
        else:
            setattr(message, field.name, value)

    def _fill_message(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if depth > 6:
            return
        target = getattr(message, field.name)
        kind = getattr(pb, field.message_type.name)
        if field.is_repeated:
            target.extend([self.message(kind, depth + 1) for _ in range(self.chance.randrange(4))])
        else:
            target.CopyFrom(self.message(kind, depth + 1))

    def _value(self, field: FieldDescriptor) -> Any:
        chance = self.chance
        if field.enum_type is not None:
            return chance.choice([0, 0, 1, 1, 2, 3, 4, 5, 9, -1, 2**31 - 1])
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.choice(TEXTS)
        if field.type == FieldDescriptor.TYPE_STRING:
            return chance.choice(["", "a", "é\0"])
        unsigned = field.cpp_type == FieldDescriptor.CPPTYPE_UINT64
        number = chance.choice(INTEGERS)
        if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32:
            return abs(number) % 2**32
        return number % 2**64 if unsigned else number

    def garbage(self) -> bytes:
        """A message with a few bytes changed, cut out or put in."""
        kind = self.chance.choice(list(UNARY.values()))
        data = bytearray(self.message(kind).SerializeToString() or b"\n")
        for _ in range(self.chance.randrange(1, 4)):
            place = self.chance.randrange(len(data) + 1)
            data[place : place + self.chance.randrange(3)] = self.chance.randbytes(1)
        return bytes(data)


async def unary(client: Client, path: str, message: bytes) -> bool:
    """Whether it was answered well."""
    try:
        await client.channel.unary(path, message, timeout=20)
    except RpcError:
        return False
    return True


async def stream(client: Client, maker: Maker) -> None:
    path = maker.chance.choice(list(STREAMS))
    call = await client.channel.stream(path, timeout=20)
    try:
        for _ in range(maker.chance.randrange(1, 5)):
            message = maker.message(STREAMS[path]).SerializeToString()
            await call.send(message if maker.chance.random() < 0.9 else maker.garbage())
    except RpcError:
        pass  # it was ended already
    if maker.chance.random() < 0.5:
        await call.end()
    if path.endswith("RangeStream"):
        await ending(call)
    call.cancel()


async def quieten(client: Client) -> None:
    """Take back the alarms, which would stop everything that follows."""
    for alarm in (await client.call(ALARM)).alarms:
        fields = {"memberID": alarm.memberID, "alarm": alarm.alarm}
        await client.call(ALARM, action=pb.AlarmRequest.DEACTIVATE, **fields)


async def fingerprint(client: Client) -> tuple[Any, ...]:
    now = await client.call(RANGE, key=b"\0", range_end=b"\0")
    revision = now.header.revision
    return (await client.call(HASH_KV, revision=revision)).hash, revision, list(now.kvs)


@pytest.mark.parametrize("seed", SEEDS)
@story
async def test_no_request_ends_a_member_now_or_at_its_next_start(tmp_path: Path, seed: int) -> None:
    maker = Maker(seed)
    config = config_of(tmp_path)
    good = 0
    async with member_on(config) as (member, client):
        for number in range(REQUESTS):
            path = maker.chance.choice(OFTEN)
            message = maker.message(UNARY[path]).SerializeToString()
            if maker.chance.random() < 0.1:
                message = maker.garbage()
            good += await unary(client, path, message)
            if number % 50 == 0:
                await stream(client, maker)
                await quieten(client)
            assert not member.server.failure.done(), (path, message)
        await quieten(client)
        await client.put(b"last")  # the hash of a compaction's own revision is another
        before = await fingerprint(client)
    assert good > REQUESTS / 4
    lose_database(config.snap_dir)
    async with member_on(config) as (_, client):
        assert await fingerprint(client) == before


def lose_database(folder: str) -> None:
    """So that every entry of the log is applied again."""
    for path in Path(folder).glob("kvorum.mdb*"):
        path.unlink()


@pytest.mark.plain
def test_every_method_is_tried() -> None:
    """Those that are served, from the list that is served."""

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return Anything()

        def __call__(self, *arguments: Any) -> Any:
            return Anything()

        def __truediv__(self, other: float) -> float:
            return other

    served = set(build_methods(Anything(), HealthService()))  # type: ignore[arg-type]
    expected = UNARY.keys() | STREAMS.keys()
    assert served - expected == {
        "/etcdserverpb.Maintenance/Defragment",
        "/etcdserverpb.Maintenance/Snapshot",
        "/grpc.health.v1.Health/List",
    }
    assert expected <= served


@story
async def test_many_hostile_clients_at_once(tmp_path: Path) -> None:
    async with member_on(config_of(tmp_path)) as (member, client):

        async def attack(seed: int) -> None:
            maker, other = Maker(seed), client.another()
            for _ in range(60):
                path = maker.chance.choice(OFTEN)
                await unary(other, path, maker.message(UNARY[path]).SerializeToString())
                await stream(other, maker)
            await other.close()

        await asyncio.gather(*(attack(seed) for seed in range(10)))
        await quieten(client)
        assert not member.server.failure.done()
        assert await client.put(b"k") > 1
