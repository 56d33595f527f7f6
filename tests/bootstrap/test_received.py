"""A database that a leader sent, saved and logged but not in its place when the member ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from boot_kit import (
    ME,
    PEER,
    begin,
    booting,
    config_of,
    log_entries,
    refusal,
    snap_dir,
    write_snapshot,
)

from kvorum.backend import Backend
from kvorum.config import ServerConfig
from kvorum.membership import Member
from kvorum.raft.types import ConfState, Entry, EntryType
from kvorum.server.bootstrap import restart
from kvorum.server.errors import BadDataDirectory
from kvorum.snap import BoltWriter
from kvorum.types import Index, MemberID, Term

OTHER = Member(MemberID(0xB), ("http://10.0.0.2:1",), "b", ("http://c:2",))


def received(config: ServerConfig, index: int, *, applied: int | None = None) -> Path:
    """Save a database as of entry ``index``, in which there are two members."""
    path = snap_dir(config) / f"{index:016x}.snap.db"
    own = Member(ME, (PEER,), "m")
    number = index if applied is None else applied
    meta = [(b"consistent_index", number.to_bytes(8, "big")), (b"term", (1).to_bytes(8, "big"))]
    members = sorted((b"%x" % member.id, member.to_json()) for member in (own, OTHER))
    with BoltWriter(path, sync=False) as writer:
        writer.add_bucket(b"members", members)
        writer.add_bucket(b"meta", meta)
    return path


def behind(folder: Path) -> ServerConfig:
    """A log that begins at a snapshot which the database has not reached."""
    config = config_of(folder)
    begin(config, entries=20, applied=12)
    with booting(config) as booted:
        write_snapshot(booted, 15)
    return config


def test_it_is_put_in_its_place(tmp_path: Path) -> None:
    config = behind(tmp_path)
    path = received(config, 15)
    older = received(config, 7)
    for _ in range(2):  # the second time it is there
        with booting(config) as booted:
            assert (booted.applied, booted.term, booted.snapshot_index) == (15, 1, 15)
            assert booted.cluster.members[OTHER.id] == OTHER
            assert booted.storage.initial_state()[1] == ConfState((OTHER.id, ME))
            assert booted.storage.last_index() == 20
        assert not path.exists()
        assert not older.exists()
    assert list(snap_dir(config).glob("tmp*")) == []


def test_the_log_may_end_with_the_snapshot(tmp_path: Path) -> None:
    """As that of a member does that was far behind: nothing follows, and little went before."""
    config = config_of(tmp_path)
    with booting(config) as booted:
        write_snapshot(booted, 50)
        log_entries(booted, 0, commit=50)
    received(config, 50)
    with booting(config) as booted:
        assert (booted.applied, booted.storage.first_index(), booted.storage.last_index()) == (
            50,
            51,
            50,
        )


def test_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the converted database is in its place, the received one is kept."""
    config = behind(tmp_path)
    path = received(config, 15)
    reached: list[str] = []

    async def cut(self: Backend, converted: Path) -> None:
        reached.append(converted.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Backend, "replace", cut)
        with pytest.raises(KeyboardInterrupt), booting(config):
            pass
    assert reached == ["tmp-kvorum.mdb"]
    assert path.exists()
    with booting(config) as booted:
        assert booted.applied == 15
    assert not path.exists()


def test_one_of_another_snapshot_is_not_taken(tmp_path: Path) -> None:
    config = behind(tmp_path)
    received(config, 14)
    text = refusal(config, BadDataDirectory)
    assert text.startswith("the database ends at entry 12, before the snapshot at entry 15")


def test_one_that_holds_less_than_its_name_says(tmp_path: Path) -> None:
    """It is kept, so that the member says the same at each start."""
    config = behind(tmp_path)
    path = received(config, 15, applied=13)
    assert "the database ends at entry 13, before" in refusal(config, BadDataDirectory)
    assert path.exists()


def test_one_that_is_damaged(tmp_path: Path) -> None:
    config = behind(tmp_path)
    path = received(config, 15)
    path.write_bytes(path.read_bytes()[:5000])
    assert "cannot convert" in refusal(config, BadDataDirectory)
    assert path.exists()


def test_one_that_is_not_needed_any_more_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    begin(config, entries=20, applied=18)
    with booting(config) as booted:
        write_snapshot(booted, 15)
    received(config, 15)
    monkeypatch.delattr(restart, "import_go_database")
    with booting(config) as booted:
        assert booted.applied == 18


def test_a_lost_database_behind_a_received_snapshot(tmp_path: Path) -> None:
    """The log before it is full of holes, and the snapshot's database was given up."""
    config = config_of(tmp_path)
    with booting(config) as booted:
        write_snapshot(booted, 50)
        beyond = Entry(Term(1), Index(51), EntryType.NORMAL, b"")
        booted.wal.write(booted.wal.encode(None, [beyond]))
    for path in snap_dir(config).glob("kvorum.mdb*"):
        path.unlink()
    text = refusal(config, BadDataDirectory)
    assert text.startswith("there is no database, and the log cannot replace it")
