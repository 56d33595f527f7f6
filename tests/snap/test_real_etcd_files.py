"""Snapshot and database files that etcd wrote and we read, and the other way round."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bolt_layout import read_bolt
from go_etcd import GoEtcd, run_tool
from google_crc32c import extend

from kvorum import wal
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.types import (
    ConfChange,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.snap import (
    BoltFile,
    BoltLocked,
    BoltWriter,
    Membership,
    Snapshotter,
    StoredMember,
    build_store,
    read_store,
)
from kvorum.snap.v2store import dump_json

BUCKETS = [
    b"alarm",
    b"auth",
    b"authRoles",
    b"authUsers",
    b"cluster",
    b"key",
    b"lease",
    b"members",
    b"members_removed",
    b"meta",
]
LEASE = 0x5A4AA206751F080E


@dataclass
class GoFiles:
    data: Path
    backup: Path
    revision: int

    @property
    def snap(self) -> Path:
        return self.data / "member" / "snap"

    @property
    def wal(self) -> Path:
        return self.data / "member" / "wal"


def put(server: GoEtcd, key: bytes, value: bytes, lease: int = 0) -> int:
    request = pb.PutRequest(key=key, value=value, lease=lease)
    return server.call("KV/Put", request, pb.PutResponse).header.revision


@pytest.fixture(scope="module")
def go_files(tmp_path_factory: pytest.TempPathFactory) -> GoFiles:
    """The files of a real server with enough keys for branch pages and one for overflow."""
    base = tmp_path_factory.mktemp("go")
    with GoEtcd(base / "data", "--snapshot-count=300", "--unsafe-no-fsync") as server:
        grant = pb.LeaseGrantRequest(ID=LEASE, TTL=1000)
        server.call("Lease/LeaseGrant", grant, pb.LeaseGrantResponse)
        for i in range(700):
            put(server, b"key%d" % (i % 500), b"value%d" % i, LEASE if i % 100 == 0 else 0)
        put(server, b"big", b"b" * 50_000)
        delete = pb.DeleteRangeRequest(key=b"key1", range_end=b"key2")
        reply = server.call("KV/DeleteRange", delete, pb.DeleteRangeResponse)
        run_tool("etcdctl", f"--endpoints={server.endpoint}", "snapshot", "save", base / "backup")
    return GoFiles(base / "data", base / "backup", reply.header.revision)


@pytest.mark.parametrize("which", ["db", "backup"])
def test_a_real_database_is_read_whole(go_files: GoFiles, which: str) -> None:
    path = go_files.snap / "db" if which == "db" else go_files.backup
    expected = read_bolt(path)
    with BoltFile(path) as file:
        assert file.buckets() == BUCKETS
        for bucket in BUCKETS:
            assert list(file.items(bucket)) == sorted(expected[bucket].items())
    got: dict[bytes, dict[bytes, bytes]] = {bucket: {} for bucket in BUCKETS}
    with BoltFile(path) as file:
        for bucket, items in file.batches():
            got[bucket].update(items)
    assert got == expected
    assert len(got[b"key"]) == 700 + 1 + 111
    assert len(got[b"lease"]) == 1
    values = [mvccpb.KeyValue.FromString(value) for value in got[b"key"].values()]
    assert values[-112].value == b"b" * 50_000
    assert max(kv.mod_revision for kv in values) == go_files.revision - 1


def test_a_copy_of_a_real_database_has_the_same_hash(go_files: GoFiles, tmp_path: Path) -> None:
    """Read from one file and written to another, key by key; the tool sees the same data."""
    copy = tmp_path / "copy"
    with BoltFile(go_files.backup) as source, BoltWriter(copy) as target:
        for bucket in source.buckets():
            target.add_bucket(bucket, source.items(bucket))
    theirs, ours = (status(path) for path in (go_files.backup, copy))
    assert ours.pop("totalSize") == copy.stat().st_size
    theirs.pop("totalSize")
    assert ours == theirs
    assert ours["revision"] == go_files.revision


def status(path: Path) -> dict[str, Any]:
    found = json.loads(run_tool("etcdutl", "snapshot", "status", path, "-w", "json"))
    assert isinstance(found, dict)
    return found


def test_real_snapshots_are_loaded(go_files: GoFiles) -> None:
    files = Snapshotter(go_files.snap)
    recorded = wal.valid_snapshots(go_files.wal)
    snapshot = files.load_newest(recorded)
    assert snapshot.metadata == SnapshotMetadata(
        recorded[-1].conf_state or ConfState(), recorded[-1].index, recorded[-1].term
    )
    assert len(files.files()) == 2
    membership = read_store(snapshot.data)
    metadata = pb.Metadata.FromString(wal.read_log(go_files.wal).metadata)
    (member,) = membership.members
    assert member.id == metadata.NodeID
    assert member.name == "default"
    assert member.client_urls[0].startswith("http://127.0.0.1:")
    assert member.peer_urls[0].startswith("http://127.0.0.1:")
    assert (membership.removed, membership.version) == ((), "3.5.0")
    assert not membership.has_user_data


def test_our_store_has_the_form_of_a_real_one(go_files: GoFiles) -> None:
    snapshot = Snapshotter(go_files.snap).load_newest()
    theirs = json.loads(snapshot.data)
    ours = json.loads(build_store(read_store(snapshot.data)))
    assert form(ours) == form(theirs)


def form(store: dict[str, Any]) -> Any:
    """What does not count writes or time: names in their order, values, the tree."""
    store["WatcherHub"]["EventHistory"]["Queue"]["Events"] = []
    queue = list(store["WatcherHub"]["EventHistory"]["Queue"])
    return list(store), list(store["Stats"]), queue, nodes(store["Root"])


def nodes(node: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    found = [(node["Path"], node["Value"], list(node))]
    for _, child in sorted((node["Children"] or {}).items()):
        found += nodes(child)
    return found


# A whole data directory of our own.

MEMBER = 0x0DD0B5F7DDB13B49
CLUSTER = 0xD0A9ED06DF5D1F3E
KEYS = 3000
TERM = 3


def rev_key(main: int) -> bytes:
    return main.to_bytes(8, "big") + b"_" + bytes(8)


def key_value(number: int) -> bytes:
    return mvccpb.KeyValue(
        key=b"k%06d" % number,
        value=b"v%d" % number * 9,
        create_revision=number + 2,
        mod_revision=number + 2,
        version=1,
        lease=LEASE if number % 1000 == 0 else 0,
    ).SerializeToString()


def member_json() -> bytes:
    member = {"id": MEMBER, "peerURLs": ["http://127.0.0.1:2380"], "name": "default"}
    return dump_json(member).encode()


def write_database(path: Path, index: int) -> None:
    content: dict[bytes, list[tuple[bytes, bytes]]] = {bucket: [] for bucket in BUCKETS}
    content[b"key"] = [(rev_key(i + 2), key_value(i)) for i in range(KEYS)]
    lease = bytes.fromhex("088e90fca8e7c0a8a55a10e807")
    content[b"lease"] = [(LEASE.to_bytes(8, "big"), lease)]
    content[b"cluster"] = [(b"clusterVersion", b"3.5.0")]
    content[b"members"] = [(b"%x" % MEMBER, member_json())]
    content[b"auth"] = [(b"authEnabled", b"\0"), (b"authRevision", (1).to_bytes(8, "big"))]
    content[b"meta"] = [
        (b"confState", dump_json({"voters": [MEMBER], "auto_leave": False}).encode()),
        (b"consistent_index", index.to_bytes(8, "big")),
        (b"term", TERM.to_bytes(8, "big")),
    ]
    with BoltWriter(path) as writer:
        for bucket, items in content.items():
            writer.add_bucket(bucket, items)


def internal_put(key: bytes, value: bytes, number: int) -> bytes:
    request = pb.InternalRaftRequest(put=pb.PutRequest(key=key, value=value))
    request.header.ID = number
    return request.SerializeToString()


@pytest.fixture
def our_data(tmp_path: Path) -> Path:
    """A snapshot at 10, the database as of it, and two puts in the log behind it."""
    data = tmp_path / "data"
    snap = data / "member" / "snap"
    snap.mkdir(parents=True, mode=0o700)
    conf = ConfState((MEMBER,))
    metadata = pb.Metadata(NodeID=MEMBER, ClusterID=CLUSTER).SerializeToString()
    log = wal.WAL.create(data / "member" / "wal", metadata)
    kind, change = encode_conf_change(ConfChange(node_id=MEMBER, context=member_json()))
    entries = [Entry(1, 1, kind, change)]
    entries += [Entry(TERM, index, EntryType.NORMAL, b"") for index in range(2, 11)]
    log.write(log.encode(HardState(TERM, MEMBER, 10), entries))
    write_database(snap / "db", 10)
    member = StoredMember(MEMBER, ("http://127.0.0.1:2380",), name="default")
    store = build_store(Membership((member,), (), "3.5.0"))
    Snapshotter(snap).save(Snapshot(store, SnapshotMetadata(conf, 10, TERM)))
    log.write(log.encode_snapshot(wal.SnapshotRecord(10, TERM, conf)))
    log.write(
        log.encode(
            HardState(TERM, MEMBER, 12),
            [
                Entry(TERM, 11, EntryType.NORMAL, internal_put(b"later1", b"x", 71)),
                Entry(TERM, 12, EntryType.NORMAL, internal_put(b"later2", b"y", 72)),
            ],
        )
    )
    log.close()
    return data


def test_etcd_starts_from_files_that_we_wrote(our_data: Path) -> None:
    snap = our_data / "member" / "snap"
    with GoEtcd(our_data, "--unsafe-no-fsync") as server:
        with pytest.raises(BoltLocked):
            BoltFile(snap / "db")
        everything = pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
        assert server.call("KV/Range", everything, pb.RangeResponse).count == KEYS + 2
        one = server.call("KV/Range", pb.RangeRequest(key=b"k002999"), pb.RangeResponse).kvs[0]
        assert one.SerializeToString() == key_value(2999)
        later = server.call("KV/Range", pb.RangeRequest(key=b"later2"), pb.RangeResponse).kvs[0]
        assert (later.value, later.mod_revision) == (b"y", KEYS + 3)
        request = pb.HashKVRequest(revision=KEYS + 1)
        hash_kv = server.call("Maintenance/HashKV", request, pb.HashKVResponse)
        assert hash_kv.hash == our_hash()
        ttl = pb.LeaseTimeToLiveRequest(ID=LEASE, keys=True)
        lease = server.call("Lease/LeaseTimeToLive", ttl, pb.LeaseTimeToLiveResponse)
        assert (lease.grantedTTL, len(lease.keys)) == (1000, 3)
        assert put(server, b"new", b"z") == KEYS + 4
        members = server.call("Cluster/MemberList", pb.MemberListRequest(), pb.MemberListResponse)
        assert [(m.ID, m.name) for m in members.members] == [(MEMBER, "default")]
    after = read_bolt(snap / "db")
    with BoltFile(snap / "db") as file:
        assert list(file.items(b"key")) == sorted(after[b"key"].items())
    assert len(after[b"key"]) == KEYS + 3
    result = wal.read_log(our_data / "member" / "wal", wal.SnapshotRecord(10, TERM))
    assert any(b"new" in entry.data for entry in result.entries)
    assert not list(snap.glob("*.broken"))


def our_hash() -> int:
    crc = extend(0, b"key")
    for i in range(KEYS):
        crc = extend(extend(crc, rev_key(i + 2)), key_value(i))
    return crc


def test_etcd_restores_a_backup_that_we_wrote(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    write_database(backup, 10)
    found = status(backup)
    assert found["totalSize"] == backup.stat().st_size
    assert found["revision"] == KEYS + 1
    with BoltFile(backup) as file:
        assert found["totalKey"] == sum(1 for _ in file.all_items())
    assert found["hash"] == whole_hash(backup)
    data = tmp_path / "data"
    run_tool("etcdutl", "snapshot", "restore", backup, "--data-dir", data, "--skip-hash-check")
    check_restored(data)
    with GoEtcd(data, "--unsafe-no-fsync") as server:
        everything = pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
        assert server.call("KV/Range", everything, pb.RangeResponse).count == KEYS


def whole_hash(path: Path) -> int:
    crc = 0
    with BoltFile(path) as file:
        for bucket in file.buckets():
            crc = extend(crc, bucket)
            for key, value in file.items(bucket):
                crc = extend(extend(crc, key), value)
    return crc


def check_restored(data: Path) -> None:
    """What the tool wrote, read by us: one entry for its member, and the snapshot after it."""
    directory = data / "member" / "wal"
    log, result = wal.open_log(directory)
    log.close()
    assert [entry.type for entry in result.entries] == [EntryType.CONF_CHANGE]
    assert (result.hard_state.term, result.hard_state.commit) == (1, 1)
    latest = wal.latest_snapshot(directory)
    assert (latest.index, latest.term) == (1, 1)
    snapshot = Snapshotter(data / "member" / "snap").load_newest([latest])
    (member,) = read_store(snapshot.data).members
    assert latest.conf_state == ConfState((member.id,))
    assert member.client_urls == ()
    with BoltFile(data / "member" / "snap" / "db") as file:
        assert dict(file.items(b"meta"))[b"consistent_index"] == (1).to_bytes(8, "big")
