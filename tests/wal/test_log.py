"""The log on disk: appending, cutting, reading back, refusing."""

from __future__ import annotations

import os
import queue
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import wal_layout

from kvorum import failpoint, wal
from kvorum.raft.types import ConfState, Entry, EntryType, HardState
from kvorum.wal import WAL, SnapshotRecord, open_log
from kvorum.wal.encoder import Encoder
from kvorum.wal.files import open_locked
from kvorum.wal.log import DEFER_LIMIT
from kvorum.wal.record import RecordType, encode_frame

SMALL = 4096


def entry(index: int, term: int = 1, data: bytes = b"data") -> Entry:
    return Entry(term, index, EntryType.NORMAL, data)


def save(log: WAL, *entries: Entry, state: HardState | None = None) -> None:
    log.write(log.encode(state, list(entries)))


def segment_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix == ".wal")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "wal"


@pytest.fixture
def log(directory: Path) -> Iterator[WAL]:
    log = WAL.create(directory, b"meta", segment_size=SMALL)
    yield log
    log.close()


def reopen(log: WAL, snapshot: SnapshotRecord = wal.START) -> wal.ReadResult:
    log.close()
    again, result = open_log(log.directory, snapshot, segment_size=SMALL)
    again.close()
    return result


def test_a_new_log(directory: Path) -> None:
    log = WAL.create(directory, b"meta")
    name = f"{0:016x}-{0:016x}.wal"
    assert segment_names(directory) == [name]
    assert (directory / name).stat().st_size == 64_000_000
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    log.close()
    assert not directory.with_name("wal.tmp").exists()
    assert [path.name for path in directory.iterdir()] == [name]
    kinds = [record.kind for record in wal_layout.check_log(directory)]
    assert kinds == [wal_layout.CRC, wal_layout.METADATA, wal_layout.SNAPSHOT]


def test_what_was_written_is_read_back(log: WAL) -> None:
    save(log, entry(1), entry(2, data=b""), state=HardState(1, 7, 1))
    save(log, Entry(2, 3, EntryType.CONF_CHANGE, b"change"), state=HardState(2, 7, 2))
    result = reopen(log)
    assert result.metadata == b"meta"
    assert result.hard_state == HardState(2, 7, 2)
    assert result.entries == [
        entry(1),
        entry(2, data=b""),
        Entry(2, 3, EntryType.CONF_CHANGE, b"change"),
    ]


def test_a_new_leader_overrides_what_was_not_committed(log: WAL) -> None:
    save(log, *(entry(i) for i in range(1, 6)), state=HardState(1, 1, 2))
    save(log, entry(3, 2), entry(4, 2))
    assert reopen(log).entries == [entry(1), entry(2), entry(3, 2), entry(4, 2)]


def test_appending_after_reading(log: WAL) -> None:
    save(log, entry(1), state=HardState(1, 1, 1))
    log.close()
    for index in range(2, 300):
        log, result = (
            open_log(log.directory, segment_size=SMALL) if index % 50 == 2 else (log, None)
        )
        if result is not None:
            assert [e.index for e in result.entries] == list(range(1, index))
        save(log, entry(index, data=b"x" * 40), state=HardState(1, 1, index))
        if index % 50 == 1:
            log.close()
    log.close()
    assert len(segment_names(log.directory)) > 3
    wal_layout.check_log(log.directory)
    assert len(wal.read_log(log.directory).entries) == 299


def test_batches_encoded_ahead_of_the_writes_cross_several_cuts(log: WAL) -> None:
    batches = [
        log.encode(HardState(1, 1, i), [entry(10 * i + j, data=b"x" * 50) for j in range(1, 11)])
        for i in range(40)
    ]
    assert sum(batch.cut is not None for batch in batches) >= 5
    for batch in batches[:20]:
        log.write(batch)
    log.write_all(batches[20:])
    log.close()
    wal_layout.check_log(log.directory)
    result = wal.read_log(log.directory)
    assert [e.index for e in result.entries] == list(range(1, 401))
    assert result.hard_state == HardState(1, 1, 39)
    names = segment_names(log.directory)
    finished = [(log.directory / name).stat().st_size for name in names[:-1]]
    assert all(SMALL <= size < 2 * SMALL for size in finished)
    assert not list(log.directory.glob("*.tmp"))


def test_batches_must_be_written_in_order(log: WAL) -> None:
    first = log.encode(None, [entry(1)])
    second = log.encode(None, [entry(2)])
    with pytest.raises(wal.WALError, match="out of order"):
        log.write(second)
    with pytest.raises(wal.WALError, match="out of order"):
        log.write(first)


def test_one_thread_encodes_while_another_writes(log: WAL) -> None:
    batches: queue.SimpleQueue[wal.WriteBatch | None] = queue.SimpleQueue()
    failures: list[BaseException] = []

    def write_in_turn() -> None:
        try:
            while (batch := batches.get()) is not None:
                log.write(batch)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write_in_turn)
    writer.start()
    for index in range(1, 1001):
        batches.put(log.encode(HardState(1, 1, index - 1), [entry(index, data=b"x" * 50)]))
        if index % 100 == 0:
            log.release_to(index)
    batches.put(None)
    writer.join()
    assert not failures
    log.close()
    wal_layout.check_log(log.directory)
    assert len(wal.read_log(log.directory).entries) == 1000


def test_a_commit_alone_is_kept_back_for_the_next_sync(log: WAL) -> None:
    path = log.directory / segment_names(log.directory)[0]
    save(log, entry(1), state=HardState(1, 1, 0))
    before = path.read_bytes()
    save(log, state=HardState(1, 1, 1))
    assert path.read_bytes() == before
    save(log, entry(2))
    kinds = [record.kind for record in wal_layout.segment_records(path)]
    assert kinds[-3:] == [wal_layout.STATE, wal_layout.STATE, wal_layout.ENTRY]


def test_what_is_kept_back_is_bounded(directory: Path) -> None:
    log = WAL.create(directory, b"meta", segment_size=10 * DEFER_LIMIT)
    path = directory / segment_names(directory)[0]
    save(log, entry(1), state=HardState(1, 1, 0))
    used = wal_layout.segment_records(path)[-1].end
    commit = 0
    while wal_layout.segment_records(path)[-1].end == used:
        commit += 1000
        log.write_all([log.encode(HardState(1, 1, commit + i), []) for i in range(1000)])
    assert commit < DEFER_LIMIT / 24 + 1000
    log.close()


def test_close_writes_what_was_kept_back(log: WAL) -> None:
    save(log, entry(1), state=HardState(1, 1, 0))
    save(log, state=HardState(1, 1, 1))
    assert reopen(log).hard_state.commit == 1


def test_write_tells_what_it_cost(log: WAL) -> None:
    written, synced = log.write(log.encode(None, [entry(1)]))
    assert written > 0
    assert synced > 0
    assert log.write(log.encode(HardState(1, 0, 0), [])).sync > 0
    assert log.write(log.encode(HardState(1, 0, 1), [])) == (0.0, 0.0)
    assert log.sync().write > 0


def test_one_sync_serves_all_that_are_written_together(log: WAL) -> None:
    promise = log.encode(HardState(1, 1, 0), [entry(1)])
    commit = log.encode(HardState(1, 1, 1), [])
    assert not commit.sync
    assert log.write_all([promise, commit]).sync > 0
    path = log.directory / segment_names(log.directory)[0]
    kinds = [record.kind for record in wal_layout.segment_records(path)]
    assert kinds[-2:] == [wal_layout.STATE, wal_layout.STATE]


def test_without_fsync_nothing_is_synced(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = WAL.create(directory, b"meta", segment_size=SMALL, unsafe_no_fsync=True)
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("synced"))
    save(log, *(entry(i, data=b"x" * 100) for i in range(1, 100)))
    assert log.write(log.encode(None, [entry(100)])).sync == 0.0
    log.close()
    assert len(wal.read_log(directory).entries) == 100


def test_failpoints_stand_around_a_sync(log: WAL) -> None:
    failpoint.enable("walBeforeSync", "return")
    failpoint.enable("walAfterSync", "return")
    try:
        save(log, entry(1), state=HardState(1, 1, 0))
        save(log, state=HardState(1, 1, 1))
        counts = [failpoint.status(name)[1] for name in ("walBeforeSync", "walAfterSync")]
    finally:
        failpoint.disable_all()
    assert counts == [1, 1]


# Opening.


def saved_snapshot(log: WAL, index: int, term: int = 1) -> SnapshotRecord:
    snapshot = SnapshotRecord(index, term, ConfState((1,)))
    log.write(log.encode_snapshot(snapshot))
    return snapshot


def long_log(log: WAL, *, last: int = 200, snapshot_every: int = 50) -> None:
    for index in range(1, last + 1):
        save(log, entry(index, data=b"x" * 60), state=HardState(1, 1, index))
        if index % snapshot_every == 0:
            saved_snapshot(log, index)


def test_open_at_a_snapshot_reads_what_follows_it(log: WAL) -> None:
    long_log(log)
    result = reopen(log, SnapshotRecord(150, 1))
    assert [e.index for e in result.entries] == list(range(151, 201))
    assert result.hard_state == HardState(1, 1, 200)


def test_valid_snapshots_are_those_that_were_committed(log: WAL) -> None:
    long_log(log, last=100)
    saved_snapshot(log, 500, 2)
    log.close()
    found = wal.valid_snapshots(log.directory)
    assert [(s.index, s.term) for s in found] == [(0, 0), (50, 1), (100, 1)]
    assert found[-1].conf_state == ConfState((1,))
    assert wal.latest_snapshot(log.directory) == found[-1]


def test_the_latest_snapshot_is_found_from_the_end(log: WAL) -> None:
    assert wal.latest_snapshot(log.directory) == wal.START
    save(log, *(entry(i) for i in range(1, 5)))
    assert wal.latest_snapshot(log.directory) == wal.START
    long_log(log, last=100, snapshot_every=40)
    log.close()
    names = segment_names(log.directory)
    first_needed = max(name for name in names if int(name[17:33], 16) <= 80)
    for name in names:
        if name < first_needed:  # neither read nor needed
            (log.directory / name).write_bytes(b"junk")
    assert wal.latest_snapshot(log.directory) == SnapshotRecord(80, 1, ConfState((1,)))
    assert len(reopen(log, SnapshotRecord(80, 1)).entries) == 20


def test_a_torn_end_hides_no_snapshot_but_an_earlier_one_is_damage(log: WAL) -> None:
    long_log(log, last=200, snapshot_every=40)
    log.close()
    names = segment_names(log.directory)
    last = log.directory / names[-1]
    os.truncate(last, wal_layout.segment_records(last)[-1].end - 1)
    assert wal.latest_snapshot(log.directory).index in (160, 200)
    for name in names[1:]:
        os.truncate(log.directory / name, 100)
    with pytest.raises(wal.UnexpectedEOF, match=names[-2]):
        wal.latest_snapshot(log.directory)


def test_a_snapshot_from_the_leader_ahead_of_the_log(log: WAL) -> None:
    save(log, entry(1), state=HardState(1, 1, 1))
    snapshot = saved_snapshot(log, 1000, 3)
    save(log, state=HardState(3, 1, 1000))
    log.close()
    again, result = open_log(log.directory, snapshot, segment_size=1)
    assert result.entries == []
    save(again, state=HardState(3, 1, 1000))
    again.close()
    assert segment_names(log.directory)[-1] == f"{1:016x}-{1001:016x}.wal"


def test_the_wrong_term(log: WAL) -> None:
    long_log(log, last=60)
    with pytest.raises(wal.SnapshotMismatch, match="snapshot at 50 has term 1, not 2"):
        reopen(log, SnapshotRecord(50, 2))


def test_a_snapshot_that_was_never_recorded(log: WAL) -> None:
    long_log(log, last=60)
    with pytest.raises(wal.SnapshotNotFound, match="term 1, index 51"):
        reopen(log, SnapshotRecord(51, 1))
    with pytest.raises(wal.SnapshotNotFound):
        wal.read_log(log.directory, SnapshotRecord(51, 1))


def test_an_index_that_the_log_no_longer_has(log: WAL) -> None:
    long_log(log)
    log.release_to(200)
    log.purge(1)
    with pytest.raises(wal.LogNotFound, match="no segment reaches back to index 0"):
        reopen(log)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(wal.LogNotFound, match="the directory does not exist"):
        WAL.open(tmp_path / "none")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "0.tmp").touch()
    with pytest.raises(wal.LogNotFound, match="no segment in it"):
        WAL.open(tmp_path)
    assert not wal.exists(tmp_path)
    assert not wal.exists(tmp_path / "none")


def test_a_missing_segment(log: WAL) -> None:
    long_log(log)
    log.close()
    names = segment_names(log.directory)
    (log.directory / names[2]).unlink()
    with pytest.raises(wal.BrokenSequence, match=f"{names[1]} is followed by {names[3]}"):
        WAL.open(log.directory)
    snapshot = SnapshotRecord(200, 1)
    again, _ = open_log(log.directory, snapshot)  # needs only what comes after the hole
    again.close()


def test_a_log_that_is_open_is_locked(log: WAL) -> None:
    save(log, entry(1))
    with pytest.raises(wal.SegmentLocked, match="held by another process"):
        WAL.open(log.directory)
    with pytest.raises(wal.SegmentLocked):
        wal.repair(log.directory)
    assert len(wal.read_log(log.directory).entries) == 1
    result = reopen(log)
    assert len(result.entries) == 1


def test_create_keeps_away_from_what_is_there(log: WAL, tmp_path: Path) -> None:
    with pytest.raises(wal.LogExists, match="there is a log already"):
        WAL.create(log.directory, b"meta")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(wal.LogExists, match="other files, such as 'precious'"):
        WAL.create(tmp_path / "other", b"meta")
    assert (tmp_path / "other" / "precious").exists()


def test_create_replaces_what_an_interrupted_create_left(directory: Path) -> None:
    left = directory.with_name("wal.tmp")
    left.mkdir()
    (left / f"{0:016x}-{0:016x}.wal").write_bytes(b"half")
    directory.mkdir()
    WAL.create(directory, b"meta").close()
    assert wal.read_log(directory).metadata == b"meta"
    assert not left.exists()


# What is wrong inside, without being torn.


def write_segment(directory: Path, content: bytes, sequence: int = 0, index: int = 0) -> None:
    directory.mkdir(exist_ok=True)
    (directory / f"{sequence:016x}-{index:016x}.wal").write_bytes(content)


def head_of(encoder: Encoder) -> bytes:
    return encoder.begin_segment() + b"".join(encoder.encode_snapshot(wal.START).chunks)


def test_two_segments_of_different_members(directory: Path) -> None:
    first = Encoder(b"one")
    write_segment(directory, head_of(first))
    write_segment(directory, Encoder(b"two", sequence=1, crc=first.crc).begin_segment(), 1, 1)
    with pytest.raises(wal.MetadataConflict, match=r"0001\.wal at offset"):
        open_log(directory)


def test_a_segment_of_another_chain(directory: Path) -> None:
    write_segment(directory, head_of(Encoder(b"one")))
    write_segment(directory, Encoder(b"one", sequence=1, crc=77).begin_segment(), 1, 1)
    with pytest.raises(wal.CRCMismatch, match="continues checksum 0000004d, the one before ended"):
        open_log(directory)


def test_a_hole_between_entries(directory: Path) -> None:
    encoder = Encoder(b"one")
    content = head_of(encoder)
    content += b"".join(encoder.encode(None, [entry(1), entry(2), entry(4)]).chunks)
    write_segment(directory, content)
    with pytest.raises(wal.EntryGap, match=r"entry 4 \(term 1\) follows entry 2"):
        open_log(directory)


def test_a_log_without_metadata(directory: Path) -> None:
    write_segment(directory, encode_frame(RecordType.CRC, 0, None))
    with pytest.raises(wal.CorruptLog, match="no metadata record"):
        open_log(directory)


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        (6, b"", "a record of the unknown type 6"),
        (RecordType.ENTRY, b"\x08", "the data of a record of type 2 cannot be read"),
        (RecordType.STATE, b"\x08", "the data of a record of type 3 cannot be read"),
        (RecordType.SNAPSHOT, b"\x08", "the data of a record of type 5 cannot be read"),
    ],
)
@pytest.mark.plain
def test_records_that_make_no_sense(directory: Path, kind: int, data: bytes, why: str) -> None:
    encoder = Encoder(b"one")
    content = head_of(encoder)
    crc = wal_layout.crc32c(encoder.crc, data)
    write_segment(directory, content + encode_frame(kind, crc, data))  # type: ignore[arg-type]
    with pytest.raises(wal.CorruptLog, match=why):
        open_log(directory)
    assert not wal.repair(directory)  # each record is whole: nothing to repair


def test_a_segment_that_was_cut_back_to_nothing_gets_its_head_again(log: WAL) -> None:
    long_log(log)
    log.close()
    last = log.directory / segment_names(log.directory)[-1]
    os.truncate(last, 0)
    again, before = open_log(log.directory, segment_size=SMALL)
    index = before.entries[-1].index + 1
    save(again, entry(index))
    again.close()
    wal_layout.check_log(log.directory)
    assert wal.read_log(log.directory).entries == [*before.entries, entry(index)]


# Locks and purging.


def test_release_keeps_the_segment_that_the_index_is_in(log: WAL) -> None:
    long_log(log)
    names = segment_names(log.directory)
    starts = [int(name[17:33], 16) for name in names]
    assert len(names) > 5
    assert log.purge(1) == []
    log.release_to(starts[3])
    assert [path.name for path in log.purge(1)] == names[:2]
    log.release_to(starts[3] + 1)
    assert [path.name for path in log.purge(1)] == names[2:3]
    log.release_to(10_000)
    assert [path.name for path in log.purge(3)] == names[3:-3]
    assert [path.name for path in log.purge(1)] == names[-3:-1]
    assert log.purge(0) == []  # the last one is the one being written
    save(log, entry(201))


def test_release_below_the_oldest_changes_nothing(log: WAL) -> None:
    long_log(log, last=100)
    log.release_to(0)
    log.release_to(1)
    assert log.purge(1) == []


def test_purge_stops_at_a_segment_in_use(log: WAL) -> None:
    long_log(log)
    names = segment_names(log.directory)
    log.close()
    again = WAL.open(log.directory, SnapshotRecord(100, 1))
    assert {path.name for path in again.purge(0)} == {
        name for name in names if int(name[17:33], 16) <= 100
    } - {max(name for name in names if int(name[17:33], 16) <= 100)}
    again.close()


def test_purge_does_not_skip_a_segment_in_use(log: WAL) -> None:
    long_log(log)
    log.close()
    oldest = log.directory / segment_names(log.directory)[0]
    fd = open_locked(oldest, os.O_RDWR)
    assert fd is not None
    assert log.purge(1) == []
    os.close(fd)
    assert log.purge(1)[0] == oldest


# A disk that refuses.


def test_after_a_failed_sync_the_log_takes_nothing(
    log: WAL, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(log, entry(1))
    batches = [log.encode(None, [entry(2)]), log.encode(None, [entry(3)])]
    with monkeypatch.context() as patch:

        def fail(fd: int) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(wal.WriteFailed, match=r"0000.wal at offset \d+: OSError: .Errno 5."):
            log.write(batches[0])
    for refused in (
        lambda: log.write(batches[1]),
        lambda: log.encode(None, [entry(4)]),
        lambda: log.encode_snapshot(SnapshotRecord(1, 1, ConfState((1,)))),
        lambda: log.sync(),
    ):
        with pytest.raises(wal.WriteFailed, match="Errno 5"):
            refused()
    log.close()


def test_a_short_write_is_a_failure(log: WAL, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:-1], at))
    batch = log.encode(None, [entry(1)])
    with pytest.raises(wal.WriteFailed, match=f"only {batch.size - 1} of {batch.size} bytes"):
        log.write(batch)
    assert log.failed is not None


class SmallDisk:
    """Has room for so many segments, and then for none until `grow`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, room: int) -> None:
        self._real = os.posix_fallocate
        self._room = room
        self.refused = threading.Event()
        monkeypatch.setattr(os, "posix_fallocate", self)

    def __call__(self, fd: int, offset: int, size: int) -> None:
        if not self._room:
            self.refused.set()
            raise OSError(28, "No space left on device")
        self._room -= 1
        self._real(fd, offset, size)

    def grow(self) -> None:
        assert self.refused.wait(10)
        self._room = 1000


def test_no_room_for_the_next_segment_shows_at_the_cut(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDisk(monkeypatch, room=2)
    log = WAL.create(directory, b"meta", segment_size=SMALL)
    with pytest.raises(wal.WriteFailed, match="No space left on device"):
        long_log(log)
    assert len(segment_names(directory)) == 2  # one was ready before the disk was full
    log.close()
    wal_layout.check_log(directory)


def test_room_that_came_back_is_used_at_the_cut(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(monkeypatch, room=2)
    log = WAL.create(directory, b"meta", segment_size=SMALL)
    index = 0
    while len(segment_names(directory)) < 2:
        save(log, entry(index := index + 1, data=b"x" * 60))
    disk.grow()
    while len(segment_names(directory)) < 4:
        save(log, entry(index := index + 1, data=b"x" * 60))
    log.close()
    wal_layout.check_log(directory)


def test_no_room_at_all(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallDisk(monkeypatch, room=0)
    with pytest.raises(wal.WriteFailed, match=r"cannot be created: .*No space left"):
        WAL.create(directory, b"meta")
    assert not directory.exists()
    assert not directory.with_name("wal.tmp").exists()


def test_a_log_whose_creation_may_be_undone_is_set_aside(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("kvorum.wal.log.fsync_directory", fail)
    with pytest.raises(wal.WriteFailed, match="cannot be created"):
        WAL.create(directory, b"meta")
    assert not directory.exists()
    (aside,) = directory.parent.glob("wal.broken.*")
    assert wal.read_log(aside).metadata == b"meta"
