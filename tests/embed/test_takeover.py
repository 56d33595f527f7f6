"""Data directories of a real etcd 3.5, taken over by a member; and given back, as far as that goes.

etcd is killed, not stopped, so that its log is ahead of its database, as after a power cut.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.binaries import Binaries
from support.embedded import Client, config_of, member_on, op, status, story
from support.member import QUICK, MemberFactory
from support.member import Member as EtcdMember
from support.rpc import (
    COMPACT,
    DELETE_RANGE,
    HASH_KV,
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TTL,
    MEMBER_LIST,
    RANGE,
    STATUS,
    TXN,
    Rpc,
)
from support.rpc import Client as EtcdClient

from kvorum import errors
from kvorum.config import ServerConfig
from kvorum.embed import Member
from kvorum.pb import etcdserverpb as pb
from kvorum.server.errors import BadDataDirectory
from kvorum.wal import SegmentLocked

ALL = {"key": b"\0", "range_end": b"\0"}
LEASE = 0x5A4AA206751F080E


@dataclass
class Left:
    """What a killed etcd left behind, and what it had said before."""

    data: Path
    compacted: int = 250
    revision: int = 0
    hash: int = 0
    compact_hash: int = 0
    pairs: list[Any] = field(default_factory=list)
    old_pairs: list[Any] = field(default_factory=list)
    member: int = 0
    cluster: int = 0
    peer: str = ""


@pytest.fixture(scope="module")
def left(reference: Binaries, module_members: MemberFactory) -> Left:
    """Snapshots are taken every hundred entries, and the last ones are in the log alone."""
    etcd = module_members(reference.etcd, flags=[*QUICK, "--snapshot-count=100"]).start()
    found = Left(etcd.data_dir)
    with EtcdClient(etcd.endpoint).wait_connected() as client:
        write(client)
        client.call(COMPACT, revision=found.compacted, physical=True)
        write_more(client)
        describe(client, found)
    etcd.kill()
    assert len(list(etcd.snap_dir().glob("*.snap"))) >= 3
    return found


def write(client: EtcdClient) -> None:
    client.call(LEASE_GRANT, ID=LEASE, TTL=5000)
    client.call(LEASE_GRANT, ID=5, TTL=3000)
    for number in range(300):
        lease = (0, LEASE, 5)[number % 3]
        client.call(PUT_LEASED, key=b"k%03d" % (number % 70), value=b"%d" % number, lease=lease)
    client.call(DELETE_RANGE, key=b"k010", range_end=b"k020")
    client.call(TXN, success=[op("put", key=b"t%d" % i, value=b"txn") for i in range(5)])
    client.call(LEASE_GRANT, ID=6, TTL=3000)
    client.call(PUT_LEASED, key=b"gone", lease=6)
    client.call(LEASE_REVOKE, ID=6)


PUT_LEASED = Rpc("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse)


def write_more(client: EtcdClient) -> None:
    compare = pb.Compare(key=b"t1", target=pb.Compare.VALUE, value=b"txn")
    for number in range(60):
        client.call(
            TXN,
            compare=[compare],
            success=[op("put", key=b"m%d" % number, lease=5), op("range", key=b"t1")],
        )


def describe(client: EtcdClient, found: Left) -> None:
    now = client.call(RANGE, **ALL)
    found.revision = now.header.revision
    found.pairs = list(now.kvs)
    found.old_pairs = list(client.call(RANGE, **ALL, revision=280).kvs)
    found.hash = client.call(HASH_KV).hash
    found.compact_hash = client.call(HASH_KV, revision=300).hash
    found.member, found.cluster = now.header.member_id, now.header.cluster_id
    (member,) = client.call(MEMBER_LIST).members
    found.peer = member.peerURLs[0]


@pytest.fixture
def taken(left: Left, tmp_path: Path) -> Iterator[ServerConfig]:
    """A copy, and settings that are not those of the member that it was: they do not matter."""
    shutil.copytree(left.data, tmp_path / "data")
    yield config_of(tmp_path, snapshot_count=1_000_000)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)  # logs of 64 MB add up


async def check(client: Client, left: Left) -> None:
    """All that etcd had said is said again."""
    now = await client.call(RANGE, **ALL)
    assert (now.header.revision, list(now.kvs)) == (left.revision, left.pairs)
    assert (now.header.member_id, now.header.cluster_id) == (left.member, left.cluster)
    assert list((await client.call(RANGE, **ALL, revision=280)).kvs) == left.old_pairs
    assert await client.error(RANGE, **ALL, revision=left.compacted - 1) == status(errors.Compacted)
    for revision, expected in ((left.revision, left.hash), (300, left.compact_hash)):
        found = await client.call(HASH_KV, revision=revision)
        assert (found.hash, found.compact_revision) == (expected, left.compacted)
    await check_leases(client, left)
    (member,) = (await client.call(MEMBER_LIST)).members
    assert (member.ID, list(member.peerURLs)) == (left.member, [left.peer])


async def check_leases(client: Client, left: Left) -> None:
    assert {x.ID for x in (await client.call(LEASE_LEASES)).leases} == {LEASE, 5}
    for lease, granted in ((LEASE, 5000), (5, 3000)):
        found = await client.call(LEASE_TTL, ID=lease, keys=True)
        assert found.grantedTTL == granted
        assert list(found.keys) == [kv.key for kv in left.pairs if kv.lease == lease]
        assert granted - 5 <= found.TTL <= granted + 5


@story
async def test_as_it_is(taken: ServerConfig, left: Left) -> None:
    database = snap(taken) / "db"
    before = content(database)
    async with member_on(taken) as (member, client):
        await check(client, left)
        assert member.server.storage_version == "3.7.0"
        assert (await client.call(STATUS)).raftTerm == 3
        assert await client.put(b"new", lease=LEASE) == left.revision + 1
        await client.call(LEASE_REVOKE, ID=5)
    assert content(database) == before  # it is only read
    async with member_on(taken) as (_, client):
        found = await client.call(RANGE, **ALL)
        assert found.header.revision == left.revision + 2
        assert [kv.key for kv in found.kvs if kv.lease == 5] == []
        assert (await client.call(LEASE_TTL, ID=5)).TTL == -1


def snap(config: ServerConfig) -> Path:
    return Path(config.snap_dir)


def content(path: Path) -> bytes:
    return path.read_bytes()


def remove(folder: Path, pattern: str) -> int:
    """How many files were there."""
    found = list(folder.glob(pattern))
    for path in found:
        path.unlink()
    return len(found)


@story
async def test_without_its_database(taken: ServerConfig, left: Left) -> None:
    """The log is whole, from its first entry on, snapshots or not: all of it is applied again."""
    assert remove(snap(taken), "db") == 1
    async with member_on(taken) as (_, client):
        await check(client, left)
        assert await client.put(b"new") == left.revision + 1
    async with member_on(taken) as (_, client):
        assert (await client.call(RANGE, key=b"new")).kvs[0].mod_revision == left.revision + 1


@story
async def test_without_its_snapshots(taken: ServerConfig, left: Left) -> None:
    assert remove(snap(taken), "*.snap") >= 3
    async with member_on(taken) as (_, client):
        await check(client, left)


@story
async def test_our_own_database_is_the_one_that_counts(taken: ServerConfig, left: Left) -> None:
    async with member_on(taken) as (_, client):
        await client.put(b"ours")
    assert remove(snap(taken), "db") == 1
    async with member_on(taken) as (_, client):
        assert (await client.call(RANGE, key=b"ours")).count == 1
        assert (await client.call(RANGE, **ALL)).header.revision == left.revision + 1


@story
async def test_a_lost_database_of_ours_is_made_again_from_etcds(
    taken: ServerConfig, left: Left
) -> None:
    """Its log goes on from there, with our entries in it."""
    async with member_on(taken) as (_, client):
        await client.put(b"ours")
        expected = (await client.call(HASH_KV)).hash
    assert remove(snap(taken), "kvorum.mdb*") == 2
    async with member_on(taken) as (_, client):
        assert (await client.call(HASH_KV)).hash == expected


# What is refused


@story
async def test_a_directory_that_etcd_has_open(
    reference: Binaries, members: MemberFactory, tmp_path: Path
) -> None:
    etcd = members(reference.etcd, flags=QUICK, folder=tmp_path).start()
    config = config_of(tmp_path)
    with pytest.raises(SegmentLocked, match="held by another process"):
        await Member(config).start()
    assert remove(snap(config), "kvorum*") == 0
    with EtcdClient(etcd.endpoint).wait_connected() as client:
        client.call(PUT_LEASED, key=b"k")  # it is none the worse for it
    etcd.kill()


async def refused(config: ServerConfig) -> str:
    with pytest.raises(BadDataDirectory) as caught:
        await Member(config).start()
    return str(caught.value)


@story
async def test_a_database_with_authentication(
    reference: Binaries, members: MemberFactory, tmp_path: Path
) -> None:
    """It would be open to everybody."""
    etcd = members(reference.etcd, flags=[*QUICK, "--snapshot-count=5"], folder=tmp_path).start()
    enable_auth(reference, etcd)
    etcd.stop()
    assert "authentication is enabled" in await refused(config_of(tmp_path))


def enable_auth(reference: Binaries, etcd: EtcdMember) -> None:
    for args in ("user add root:secret", "user grant-role root root", "auth enable"):
        command = [reference.etcdctl, f"--endpoints={etcd.endpoint}", *args.split()]
        subprocess.run(command, check=True, capture_output=True, timeout=30)


@story
async def test_a_member_of_a_larger_cluster(
    reference: Binaries, members: MemberFactory, tmp_path: Path
) -> None:
    pair = [members(reference.etcd, name=name, folder=tmp_path / name) for name in ("a", "b")]
    urls = [f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in pair]
    for member in pair:
        member.flags = [*QUICK, f"--initial-cluster={','.join(urls)}"]
        member.spawn()
    for member in pair:
        member.wait_ready()
    with EtcdClient(pair[0].endpoint).wait_connected() as client:
        client.call(PUT_LEASED, key=b"k")
    for member in pair:
        member.kill()
    member = Member(config_of(tmp_path / "a"))
    starting = asyncio.create_task(member.start())
    while (  # noqa: ASYNC110 - nobody is told
        member._server is None or len(member.server.applier.conf_state.voters) < 2
    ):
        await asyncio.sleep(0.01)
    assert not starting.done()  # it has no leader, and waits for the other one
    assert member.server.raft.leader == 0
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


# The way back


@story
async def test_etcd_reads_the_log_that_we_went_on_with(
    taken: ServerConfig,
    left: Left,
    reference: Binaries,
    members: MemberFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as nobody has told it that the cluster is newer than it, and its own database still
    reaches up to the newest snapshot. Every kind of entry that we write is read by it."""
    monkeypatch.setattr("kvorum.server.cluster.versions.ETCD_VERSION", "3.5.1")
    async with member_on(taken) as (_, client):
        for number in range(50):
            await client.put(b"ours%d" % (number % 9), b"%d" % number, lease=LEASE * (number % 2))
        await client.call(TXN, success=[op("delete_range", key=b"k"), op("put", key=b"txn")])
        await client.call(DELETE_RANGE, key=b"ours1", range_end=b"ours4")
        await client.call(LEASE_GRANT, ID=77, TTL=900)
        await client.put(b"leased", lease=77)
        await client.call(LEASE_REVOKE, ID=5)
        await client.call(COMPACT, revision=left.revision + 10, physical=True)
        hash_kv = await client.call(HASH_KV)
        expected = list((await client.call(RANGE, **ALL)).kvs)
    etcd = back_to_etcd(reference, members, tmp_path).start()
    with EtcdClient(etcd.endpoint).wait_connected() as again:
        assert list(again.call(RANGE, **ALL).kvs) == expected
        assert {x.ID for x in again.call(LEASE_LEASES).leases} == {LEASE, 77}
        assert list(again.call(LEASE_TTL, ID=77, keys=True).keys) == [b"leased"]
        again.call(COMPACT, revision=left.revision + 11, physical=True)
        found = again.call(HASH_KV, revision=hash_kv.hash_revision)
    etcd.kill()
    remove(snap(taken), "kvorum.mdb*")
    async with member_on(taken) as (_, client):  # and we read what it went on with
        again_found = await client.call(HASH_KV, revision=hash_kv.hash_revision)
        assert (again_found.hash, again_found.compact_revision) == (
            found.hash,
            found.compact_revision,
        )


def back_to_etcd(reference: Binaries, members: MemberFactory, folder: Path) -> EtcdMember:
    return members(reference.etcd, flags=QUICK, folder=folder)


@story
async def test_an_older_etcd_does_not_join_a_newer_cluster(
    taken: ServerConfig, reference: Binaries, members: MemberFactory, tmp_path: Path
) -> None:
    """A member of ours that has led has raised the cluster's version, as an etcd 3.7 does; then
    there is no way back to 3.5 but a backup from before."""
    async with member_on(taken) as (_, client):
        await client.put(b"k")
    etcd = back_to_etcd(reference, members, tmp_path)
    etcd.spawn()
    assert etcd.wait_exit() != 0
    assert "server version is lower than determined cluster version" in etcd.log_text()
    async with member_on(taken) as (_, client):  # it has changed nothing
        assert await client.put(b"k") > 0
