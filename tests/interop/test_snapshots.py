"""Backups with the unmodified etcdctl and etcdutl 3.5, of members and for members of both kinds."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from support.binaries import Binaries
from support.embedded import op
from support.member import Member, MemberFactory
from support.rpc import (
    COMPACT,
    DELETE_RANGE,
    HASH_KV,
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_TTL,
    PUT,
    RANGE,
    STATUS,
    TXN,
    Client,
    Rpc,
)

from kvorum.pb import etcdserverpb as pb
from kvorum.snap import BoltFile

MEMBER_ADD = Rpc("/etcdserverpb.Cluster/MemberAdd", pb.MemberAddRequest, pb.MemberAddResponse)
ALL = {"key": b"\0", "range_end": b"\0"}
LEASE = 0x5A4AA206751F080E
FLAGS = ["--heartbeat-interval=10", "--election-timeout=100", "--unsafe-no-fsync"]
RUN_SECONDS = 60


def write(client: Client) -> None:
    """One history: leases, deletions, transactions, values longer than a page, a compaction."""
    client.call(LEASE_GRANT, ID=LEASE, TTL=5000)
    for number in range(400):
        lease = LEASE * (number % 2)
        client.call(PUT, key=b"k%03d" % (number % 90), value=b"%d" % number * 50, lease=lease)
    for number in range(20):
        client.call(PUT, key=b"long%d" % number, value=b"%d" % number * 20_000)
    client.call(DELETE_RANGE, key=b"k010", range_end=b"k020")
    client.call(TXN, success=[op("put", key=b"t%d" % i, value=b"txn") for i in range(9)])
    client.call(COMPACT, revision=300, physical=True)
    client.call(DELETE_RANGE, key=b"k021")
    client.call(PUT, key=b"k011", value=b"again")


@dataclass
class Saved:
    """A backup, and what the member that it was made of says."""

    path: Path
    revision: int
    hash: int
    kvs: list[Any]


@pytest.fixture(scope="module")
def tool(reference: Binaries) -> Callable[..., Any]:
    def run(*args: object) -> Any:
        words = [str(arg) for arg in args]
        name, *rest = words
        command = [str(getattr(reference, name)), *rest]
        done = subprocess.run(command, capture_output=True, timeout=RUN_SECONDS, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
        return done.stdout

    return run


Tool = Callable[..., Any]


def save(tool: Tool, member: Member, path: Path) -> Saved:
    with Client(member.endpoint).wait_connected() as client:
        tool("etcdctl", f"--endpoints={member.endpoint}", "snapshot", "save", path)
        now = client.call(RANGE, **ALL)
        found = client.call(HASH_KV)
        return Saved(path, now.header.revision, found.hash, list(now.kvs))


def check(client: Client, saved: Saved) -> None:
    """A member has what the backup had, and goes on from there."""
    now = client.call(RANGE, **ALL)
    assert (now.header.revision, list(now.kvs)) == (saved.revision, saved.kvs)
    assert client.call(HASH_KV).hash == saved.hash
    assert [lease.ID for lease in client.call(LEASE_LEASES).leases] == [LEASE]
    keys = client.call(LEASE_TTL, ID=LEASE, keys=True).keys
    assert sorted(keys) == [kv.key for kv in saved.kvs if kv.lease == LEASE]
    assert client.call(PUT, key=b"new").header.revision == saved.revision + 1
    client.call(COMPACT, revision=saved.revision, physical=True)


def restore(tool: Tool, saved: Saved, member: Member) -> None:
    url = f"http://127.0.0.1:{member.peer_port}"
    tool(
        *("etcdutl", "snapshot", "restore", saved.path, "--data-dir", member.data_dir),
        *("--name", member.name, "--initial-cluster", f"{member.name}={url}"),
        *("--initial-advertise-peer-urls", url),
    )


@pytest.fixture(scope="module")
def pair(
    module_members: MemberFactory,
    reference: Binaries,
    kvorum: Path,
    tool: Tool,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Saved, Saved]:
    """Backups of an etcd and of the server under test, with the same history."""
    folder = tmp_path_factory.mktemp("backups")
    found = []
    for binary in (reference.etcd, kvorum):
        member = module_members(binary, flags=FLAGS).start()
        with Client(member.endpoint).wait_connected() as client:
            write(client)
        found.append(save(tool, member, folder / f"{len(found)}.snap"))
        member.stop()
    return found[0], found[1]


def whole_hash(file: BoltFile) -> int:
    """As the tool computes it: nothing is left out."""
    crc = 0
    for bucket in file.buckets():
        crc = google_crc32c.extend(crc, bucket)
        for key, value in file.items(bucket):
            crc = google_crc32c.extend(crc, key + value)
    return int(crc)


def test_the_status_of_a_backup(pair: tuple[Saved, Saved], tool: Tool) -> None:
    for saved in pair:
        status = json.loads(tool("etcdutl", "snapshot", "status", saved.path, "-w", "json"))
        with BoltFile(saved.path) as file:
            assert status == {
                "hash": whole_hash(file),
                "revision": saved.revision,
                "totalKey": len(list(file.all_items())),
                "totalSize": saved.path.stat().st_size - 32,
            }


def test_a_backup_is_that_of_etcd(pair: tuple[Saved, Saved]) -> None:
    """Revisions, records, leases: byte for byte. Members, versions and places in the log differ,
    as they do between any two clusters."""
    etcds, ours = pair
    assert (ours.revision, ours.hash) == (etcds.revision, etcds.hash)
    with BoltFile(etcds.path) as old, BoltFile(ours.path) as new:
        assert new.buckets() == old.buckets()
        for bucket in (b"key", b"lease", b"alarm", b"authUsers", b"authRoles", b"members_removed"):
            assert list(new.items(bucket)) == list(old.items(bucket)), bucket
        for bucket in (b"members", b"cluster"):
            assert len(list(new.items(bucket))) == len(list(old.items(bucket))), bucket
        assert set(dict(new.items(b"meta"))) - set(dict(old.items(b"meta"))) == {b"storageVersion"}
        marks = (b"scheduledCompactRev", b"finishedCompactRev")
        for mark in marks:
            assert dict(new.items(b"meta"))[mark] == dict(old.items(b"meta"))[mark]


def test_a_member_starts_on_a_backup_of_etcd(
    pair: tuple[Saved, Saved], tool: Tool, members: MemberFactory, kvorum: Path
) -> None:
    """It says that it converts, and the file that the tool has made stays as it is."""
    member = members(kvorum, flags=FLAGS)
    restore(tool, pair[0], member)
    database = member.snap_dir() / "db"
    before = database.read_bytes()
    member.start()
    with Client(member.endpoint).wait_connected() as client:
        check(client, pair[0])
    member.stop()
    assert database.read_bytes() == before
    said = [entry["msg"] for entry in member.log_entries()]
    assert "converted the database of etcd; the original was kept" in said
    member.start()
    with Client(member.endpoint).wait_connected() as client:
        assert client.call(RANGE, **ALL).header.revision == pair[0].revision + 1


def test_a_member_starts_on_a_backup_of_its_own(
    pair: tuple[Saved, Saved], tool: Tool, members: MemberFactory, kvorum: Path
) -> None:
    member = members(kvorum, flags=FLAGS)
    restore(tool, pair[1], member)
    member.start()
    with Client(member.endpoint).wait_connected() as client:
        check(client, pair[1])


def test_etcd_starts_on_a_backup_that_a_member_beside_it_gave(
    members: MemberFactory, reference: Binaries, kvorum: Path, tool: Tool, tmp_path: Path
) -> None:
    """In a cluster of both kinds everything is as the older one has it, the version too; a cluster
    of ours alone is of a version that etcd 3.5 does not go back from."""
    etcd = members(reference.etcd, flags=FLAGS, name="etcd").start()
    with Client(etcd.endpoint).wait_connected() as client:
        write(client)
        second = members(kvorum, flags=FLAGS, name="second")
        join(client, etcd, second)
        saved = save(tool, second, tmp_path / "backup")
        assert client.call(HASH_KV).hash == saved.hash
        assert peer_hash(second, 310) == peer_hash(etcd, 310)
    restored = members(reference.etcd, flags=FLAGS, name="restored")
    restore(tool, saved, restored)
    restored.start()
    with Client(restored.endpoint).wait_connected() as client:
        check(client, saved)


def peer_hash(member: Member, revision: int) -> dict[str, Any]:
    """What a member tells its peers, without what etcd 3.5 does not tell."""
    connection = http.client.HTTPConnection("127.0.0.1", member.peer_port, timeout=20)
    try:
        body = json.dumps({"revision": revision})
        connection.request("GET", "/members/hashkv", body)
        reply = connection.getresponse()
        found: dict[str, Any] = json.loads(reply.read())
    finally:
        connection.close()
    assert found.pop("hash_revision", revision) == revision
    assert (reply.status, found["compact_revision"]) == (200, 300)
    return found


def join(client: Client, first: Member, second: Member) -> None:
    url = f"http://127.0.0.1:{second.peer_port}"
    client.call(MEMBER_ADD, peerURLs=[url])
    urls = [f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in (first, second)]
    second.flags += [f"--initial-cluster={','.join(urls)}", "--initial-cluster-state=existing"]
    second.start()
    with Client(second.endpoint).wait_connected() as other:
        assert other.call(STATUS).leader
