"""Every state in which a data directory can be found, and what is said of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from boot_kit import (
    ME,
    PEER,
    apply_to,
    begin,
    booting,
    config_of,
    log_entries,
    refusal,
    snap_dir,
    wal_dir,
    write_snapshot,
)
from peer_fakes import FakeHttp, FakeNames

from kvorum.backend import BackendError, LockedError
from kvorum.config import ServerConfig, parse_urls
from kvorum.membership import Member, cluster_id, member_id
from kvorum.pb import etcdserverpb as pb
from kvorum.peer.http_client import HttpReply
from kvorum.raft.codec import decode_conf_change
from kvorum.raft.types import (
    NONE,
    ConfState,
    EntryType,
    HardState,
)
from kvorum.server.bootstrap.start import bootstrap
from kvorum.server.errors import BadDataDirectory, BadInitialCluster, StartError
from kvorum.snap import Snapshotter
from kvorum.types import Index, MemberID, Term
from kvorum.wal import WAL, SegmentLocked, WALError, open_log, read_log


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return config_of(tmp_path)


# A new directory


def test_a_new_directory(config: ServerConfig) -> None:
    with booting(config) as booted:
        assert booted.member == ME == member_id([PEER], "tok1")
        assert booted.cluster.id == cluster_id([ME]) == 0xD0A9ED06DF5D1F3E
        assert booted.cluster.members == {}  # that comes with the first entry
        assert (booted.applied, booted.term, booted.snapshot_index) == (0, 0, 0)
        state, conf = booted.storage.initial_state()
        assert state == HardState(Term(1), NONE, Index(1))
        assert conf == ConfState()
        (entry,) = booted.storage.entries(Index(1), Index(2), 1 << 20)
    assert (entry.term, entry.index, entry.type) == (1, 1, EntryType.CONF_CHANGE)
    change = decode_conf_change(entry.data)
    assert change.node_id == ME
    assert Member.from_json(change.context) == Member(ME, (PEER,), "m")
    log = read_log(wal_dir(config))
    assert pb.Metadata.FromString(log.metadata) == pb.Metadata(
        NodeID=ME, ClusterID=0xD0A9ED06DF5D1F3E
    )
    assert [e.data for e in log.entries] == [entry.data]
    assert log.hard_state == state


def test_a_new_cluster_of_several(tmp_path: Path) -> None:
    """Every member makes the same log of itself, and knows its own id."""
    urls = {"a": "http://127.0.0.1:22580", "b": "http://127.0.0.1:22480"}
    expected = {"a": MemberID(0x35CF55299ACA0E71), "b": MemberID(0x1C34485C6D2C5344)}
    logs = []
    for name, url in urls.items():
        config = config_of(
            tmp_path / name,
            name=name,
            initial_advertise_peer_urls=parse_urls(url),
            initial_cluster=",".join(f"{n}={u}" for n, u in urls.items()),
            initial_cluster_token="tokR",
        )
        with booting(config) as booted:
            assert booted.member == expected[name]
            assert booted.cluster.id == 0xA0274BDE881E5428
            state, conf = booted.storage.initial_state()
            assert (state, conf) == (HardState(Term(1), NONE, Index(2)), ConfState())
            logs.append(booted.storage.entries(Index(1), Index(3), 1 << 20))
        assert [e.data for e in read_log(wal_dir(config)).entries] == [e.data for e in logs[0]]
    assert logs[0] == logs[1]
    assert [(e.term, e.index) for e in logs[0]] == [(1, 1), (1, 2)]
    changes = [decode_conf_change(e.data) for e in logs[0]]
    assert [c.node_id for c in changes] == [expected["b"], expected["a"]]
    assert [Member.from_json(c.context) for c in changes] == [
        Member(expected[name], (urls[name],), name) for name in ("b", "a")
    ]


def test_directories_are_private(config: ServerConfig) -> None:
    with booting(config):
        for path in (config.data_dir, config.member_dir, config.snap_dir, config.wal_path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700, path


def test_urls_are_sorted_as_etcd_does(tmp_path: Path) -> None:
    urls = ["http://127.0.0.1:22580", "http://127.0.0.1:22480"]
    config = config_of(
        tmp_path,
        initial_advertise_peer_urls=parse_urls(",".join(urls)),
        initial_cluster=",".join(f"m={url}" for url in urls),
    )
    with booting(config) as booted:
        assert booted.member == member_id(urls, "tok1")


@pytest.mark.parametrize(
    ("initial", "why"),
    [
        (f"other={PEER}", 'couldn\'t find local name "m"'),
    ],
)
def test_initial_clusters_that_cannot_begin(tmp_path: Path, initial: str, why: str) -> None:
    config = config_of(tmp_path, initial_cluster=initial)
    assert why in refusal(config, BadInitialCluster)
    assert not wal_dir(config).exists()
    assert list(snap_dir(config).iterdir()) == []


def test_a_log_directory_of_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, wal_dir=str(tmp_path / "fast" / "log"))
    begin(config)
    assert list((tmp_path / "fast" / "log").glob("*.wal"))
    with booting(config) as booted:
        assert booted.applied == 20
    text = refusal(config_of(tmp_path), BadDataDirectory)
    assert "there is no log" in text
    assert "--wal-dir" in text


def test_an_empty_log_directory_is_a_new_one(config: ServerConfig) -> None:
    wal_dir(config).mkdir(parents=True)
    with booting(config) as booted:
        assert booted.storage.last_index() == 1


def test_a_log_directory_with_something_else(config: ServerConfig) -> None:
    wal_dir(config).mkdir(parents=True)
    (wal_dir(config) / "notes.txt").touch()
    assert "holds other files, such as 'notes.txt'" in refusal(config, WALError)


# Starts that were cut off


def test_cut_off_before_there_was_a_log(config: ServerConfig) -> None:
    begin(config, entries=1, applied=0)
    shutil.rmtree(wal_dir(config))
    with booting(config) as booted:
        assert booted.member == ME
        assert booted.storage.last_index() == 1


def test_cut_off_before_the_first_entry(config: ServerConfig, tmp_path: Path) -> None:
    with booting(config):
        pass
    cut_to_metadata(config)
    other = config_of(tmp_path, initial_cluster_token="other")
    assert "the configuration has changed since" in refusal(other, BadDataDirectory)
    with booting(config) as booted:
        assert booted.storage.last_index() == 1
        assert booted.storage.initial_state()[0].commit == 1
    assert len(read_log(wal_dir(config)).entries) == 1


def test_cut_off_within_the_first_entries(config: ServerConfig) -> None:
    """The state that counts them as committed is the end of the same write."""
    with booting(config) as booted:
        first = booted.storage.entries(Index(1), Index(2), 1 << 20)
    cut_to_metadata(config)
    log, _ = open_log(wal_dir(config), unsafe_no_fsync=True)
    log.write(log.encode(None, first))
    log.close()
    for _ in range(2):
        with booting(config) as booted:
            assert booted.storage.last_index() == 1
            assert booted.storage.initial_state()[0].commit == 1
    assert len(read_log(wal_dir(config)).entries) == 1


def test_a_first_start_that_is_given_up(config: ServerConfig, tmp_path: Path) -> None:
    """While it waits for others, with files open that the next start needs."""
    url = "http://127.0.0.1:1"
    config = config_of(tmp_path, initial_cluster=f"m={PEER},a={url}")
    with booting(config):
        pass
    cut_to_metadata(config)

    class Silent(FakeHttp):
        async def request(self, *words: Any, **options: Any) -> HttpReply:
            asking.set()
            await asyncio.get_running_loop().create_future()
            raise AssertionError("not reached")

    asking = asyncio.Event()

    async def given_up() -> None:
        loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(bootstrap(config, loop, Silent(), FakeNames()))
        await asking.wait()
        starting.cancel()
        await asyncio.wait([starting])

    asyncio.run(given_up())
    with booting(config) as booted:
        assert booted.storage.last_index() == 2


def cut_to_metadata(config: ServerConfig) -> None:
    """What a log holds as it appears: checksum, metadata, and the snapshot at 0."""
    log = read_log(wal_dir(config))
    shutil.rmtree(wal_dir(config))
    WAL.create(wal_dir(config), log.metadata, unsafe_no_fsync=True).close()


def test_temporary_files_are_removed(config: ServerConfig) -> None:
    begin(config)
    leftover = snap_dir(config) / "tmp-0000000000000001-000000000000000a.snap"
    leftover.touch()
    with booting(config):
        assert not leftover.exists()
        leftover.touch()  # now it is that of a member that runs
        refusal(config, LockedError)
        assert leftover.exists()


# A directory of our own


def test_a_restart_goes_on_where_the_database_ends(config: ServerConfig) -> None:
    begin(config, entries=20, applied=12)
    with booting(config) as booted:
        assert (booted.applied, booted.term, booted.snapshot_index) == (12, 1, 0)
        assert booted.storage.last_index() == 20
        state, conf = booted.storage.initial_state()
        assert state == HardState(Term(1), ME, Index(20))
        assert conf == ConfState((ME,))
        assert booted.cluster.members[ME].client_urls == ("http://c:1",)


def test_a_restart_before_anything_was_applied(config: ServerConfig) -> None:
    begin(config, entries=3, applied=0)
    with booting(config) as booted:
        assert (booted.applied, booted.storage.last_index()) == (0, 3)
        assert booted.storage.initial_state()[1] == ConfState()


def test_what_was_applied_was_committed(config: ServerConfig) -> None:
    """The commit index goes into the log late, and the database may know better."""
    with booting(config) as booted:
        log_entries(booted, 19, commit=2)
        apply_to(booted, 15)
    with booting(config) as booted:
        assert booted.storage.initial_state()[0].commit == 15


def test_a_restart_takes_its_identity_from_the_log(config: ServerConfig, tmp_path: Path) -> None:
    """As in etcd, flags for the beginning mean nothing once there is a log."""
    begin(config)
    other = config_of(
        tmp_path, name="x", initial_cluster=f"y={PEER},z=http://a:1", initial_cluster_token="t2"
    )
    with booting(other) as booted:
        assert booted.member == ME


def test_a_restart_from_a_snapshot(config: ServerConfig) -> None:
    begin(config, snapshot=15)
    with booting(config) as booted:
        assert booted.snapshot_index == 15
        assert (booted.storage.first_index(), booted.storage.last_index()) == (16, 20)
        assert booted.storage.snapshot().metadata.conf_state == ConfState((ME,))


def test_a_snapshot_file_that_the_log_does_not_know(config: ServerConfig) -> None:
    begin(config, snapshot=10)
    with booting(config) as booted:
        write_snapshot(booted, 15, record=False)
    with booting(config) as booted:
        assert booted.snapshot_index == 10


def test_a_snapshot_above_what_was_committed(config: ServerConfig) -> None:
    with booting(config) as booted:
        log_entries(booted, 19, commit=12)
        apply_to(booted, 12)
        write_snapshot(booted, 10)
        write_snapshot(booted, 15)
    with booting(config) as booted:
        assert booted.snapshot_index == 10


def test_a_snapshot_file_that_is_gone(config: ServerConfig) -> None:
    begin(config, snapshot=15)
    (file,) = snap_dir(config).glob("*.snap")
    file.unlink()
    with booting(config) as booted:
        assert booted.snapshot_index == 15  # the log's record is enough


def test_a_damaged_snapshot_file_is_set_aside(config: ServerConfig) -> None:
    begin(config, snapshot=10)
    with booting(config) as booted:
        write_snapshot(booted, 15)
    newest = max(snap_dir(config).glob("*.snap"))
    newest.write_bytes(newest.read_bytes()[:-3])
    with booting(config) as booted:
        assert booted.snapshot_index == 10
    assert newest.with_name(newest.name + ".broken").exists()


# What does not fit together


def test_a_database_without_its_log(config: ServerConfig) -> None:
    begin(config)
    shutil.rmtree(wal_dir(config))
    text = refusal(config, BadDataDirectory)
    assert "kvorum.mdb holds a database, but there is no log" in text
    assert not wal_dir(config).exists()


def test_a_database_of_etcd_without_its_log(config: ServerConfig) -> None:
    snap_dir(config).mkdir(parents=True)
    (snap_dir(config) / "db").write_bytes(b"whatever")
    text = refusal(config, BadDataDirectory)
    assert "/db holds a database, but there is no log" in text
    assert not wal_dir(config).exists()


def test_a_lost_database_is_made_again_from_a_whole_log(config: ServerConfig) -> None:
    begin(config, snapshot=15)
    for path in snap_dir(config).glob("kvorum.mdb*"):
        path.unlink()
    with booting(config) as booted:
        assert (booted.applied, booted.snapshot_index) == (0, 0)
        assert (booted.storage.first_index(), booted.storage.last_index()) == (1, 20)
        assert booted.storage.initial_state()[1] == ConfState()
        assert booted.cluster.members == {}


def test_a_lost_database_whose_log_was_purged(config: ServerConfig) -> None:
    begin(config, snapshot=15)
    for path in snap_dir(config).glob("kvorum.mdb*"):
        path.unlink()
    (segment,) = wal_dir(config).glob("*.wal")
    segment.rename(segment.with_name("0000000000000001-000000000000000c.wal"))
    text = refusal(config, BadDataDirectory)
    assert "there is no database, and the log cannot replace it" in text
    assert "the oldest starts at 12" in text


def test_a_log_that_ends_before_the_database(config: ServerConfig) -> None:
    begin(config, entries=20, applied=20)
    saved = config.wal_path + ".saved"
    shutil.copytree(config.wal_path, saved)
    with booting(config) as booted:
        log_entries(booted, 5)
        apply_to(booted, 25)
    shutil.rmtree(config.wal_path)
    os.rename(saved, config.wal_path)
    text = refusal(config, BadDataDirectory)
    assert text.startswith(
        "the log ends at entry 20, but the database holds the result of entry 25"
    )


def test_a_database_that_is_older_than_the_snapshot(config: ServerConfig) -> None:
    begin(config, entries=20, applied=12)
    with booting(config) as booted:
        write_snapshot(booted, 15)
    text = refusal(config, BadDataDirectory)
    assert text.startswith("the database ends at entry 12, before the snapshot at entry 15")


def test_a_damaged_log(config: ServerConfig) -> None:
    begin(config)
    (segment,) = wal_dir(config).glob("*.wal")
    with segment.open("r+b") as file:
        file.seek(400)
        file.write(b"\xff" * 8)
    assert str(segment) in refusal(config, WALError)


def test_a_damaged_database(config: ServerConfig) -> None:
    begin(config)
    path = snap_dir(config) / "kvorum.mdb"
    path.write_bytes(b"no database at all" * 1000)
    assert str(path) in refusal(config, BackendError)


def test_a_damaged_member_list(config: ServerConfig) -> None:
    begin(config)
    with booting(config) as booted:
        booted.backend.put("members", b"ff", b"no json")
    text = refusal(config, BadDataDirectory)
    assert "the member list in" in text
    assert "is damaged" in text


# Directories that cannot be used


def test_a_file_in_the_place_of_the_directory(config: ServerConfig) -> None:
    Path(config.data_dir).write_bytes(b"")
    assert refusal(config, BadDataDirectory) == f"cannot make {config.data_dir}: File exists"


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = config_of(tmp_path, data_dir=str(tmp_path / "file" / "data"))
    assert refusal(config, StartError) == f"cannot make {config.data_dir}: Not a directory"


def test_a_directory_that_cannot_be_written(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(config)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != wal_dir(config).parent)
    assert refusal(config, BadDataDirectory) == f"cannot write to {wal_dir(config).parent}"


def test_a_second_member_on_the_same_directory(config: ServerConfig, tmp_path: Path) -> None:
    begin(config)
    with booting(config) as booted:
        assert refusal(config, LockedError).endswith("kvorum.mdb is in use by another process")
        # With a database elsewhere, it is the log that they would share.
        shutil.copytree(config.data_dir, tmp_path / "copy")
        other = config_of(tmp_path, data_dir=str(tmp_path / "copy"), wal_dir=config.wal_path)
        segment = next(wal_dir(config).glob("*.wal"))
        assert refusal(other, SegmentLocked) == f"wal: {segment}: held by another process"
        log_entries(booted, 1)  # and the first one is none the worse for it
        apply_to(booted, 21)
    with booting(config) as booted:
        assert booted.applied == 21


def test_a_new_member_on_the_same_directory_as_one_that_begins(
    config: ServerConfig, tmp_path: Path
) -> None:
    with booting(config):
        other = config_of(tmp_path, wal_dir=str(tmp_path / "elsewhere"))
        assert refusal(other, LockedError).endswith("is in use by another process")
        assert not (tmp_path / "elsewhere").exists()


def test_a_disk_that_is_full_at_the_first_start(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.posix_fallocate

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "No space left on device" in refusal(config, WALError)
    monkeypatch.setattr(os, "posix_fallocate", real)
    with booting(config) as booted:
        assert booted.member == ME


def test_snapshots_are_those_of_the_data_directory(config: ServerConfig) -> None:
    with booting(config) as booted:
        assert isinstance(booted.snapshots, Snapshotter)
        assert booted.snapshots.directory == snap_dir(config)
