"""Logs that etcd wrote and we read, that we wrote and etcd reads, and what each makes of damage."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import wal_layout
from go_etcd import GoEtcd
from google_crc32c import extend

from kvorum import wal
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import raftpb
from kvorum.raft.types import Entry, EntryType, HardState
from kvorum.wal import open_log

VALUE = 1_000_000
VALUES = 66
"""Enough for one cut at 64 MB."""


def put(server: GoEtcd, key: bytes, value: bytes) -> None:
    server.call("KV/Put", pb.PutRequest(key=key, value=value), pb.PutResponse)


def get(server: GoEtcd, key: bytes) -> bytes | None:
    reply = server.call("KV/Range", pb.RangeRequest(key=key), pb.RangeResponse)
    return reply.kvs[0].value if reply.kvs else None


@pytest.fixture(scope="module")
def go_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a real server: small and large puts, a delete, a lease, snapshots, one cut."""
    data = tmp_path_factory.mktemp("go") / "data"
    with GoEtcd(data, "--snapshot-count=50", "--unsafe-no-fsync") as server:
        for i in range(60):
            put(server, b"small%d" % i, b"v%d" % i)
        for i in range(VALUES):
            put(server, b"large", b"%d" % i + bytes(VALUE))
        server.call("Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=1000), pb.LeaseGrantResponse)
        delete = pb.DeleteRangeRequest(key=b"small1", range_end=b"small2")
        server.call("KV/DeleteRange", delete, pb.DeleteRangeResponse)
        put(server, b"last", b"one")
    return data


def entries_by_layout(records: list[wal_layout.LaidOut], after: int = 0) -> list[raftpb.Entry]:
    found: list[raftpb.Entry] = []
    for record in records:
        if record.kind == wal_layout.ENTRY:
            entry = raftpb.Entry.FromString(record.data or b"")
            del found[max(0, entry.Index - 1) :]
            found.append(entry)
    return found[after:]


def test_the_layout_holds_for_a_real_log_over_a_cut(go_data: Path) -> None:
    directory = go_data / "member" / "wal"
    records = wal_layout.check_log(directory, extend)
    segments = sorted(directory.glob("*.wal"))
    assert len(segments) == 2
    assert 64_000_000 <= segments[0].stat().st_size < 64_000_000 + 2 * VALUE
    assert segments[1].stat().st_size == 64_000_000
    kinds = [record.kind for record in wal_layout.segment_records(segments[1])[:4]]
    assert kinds == [wal_layout.CRC, wal_layout.METADATA, wal_layout.STATE, wal_layout.ENTRY]
    assert len(entries_by_layout(records)) > VALUES + 60


def test_our_reader_sees_what_the_layout_says(go_data: Path) -> None:
    directory = go_data / "member" / "wal"
    records = wal_layout.check_log(directory, extend)
    result = wal.read_log(directory)
    assert result.metadata == records[1].data
    assert pb.Metadata.FromString(result.metadata).NodeID
    last = [record.data for record in records if record.kind == wal_layout.STATE][-1]
    state = raftpb.HardState.FromString(last or b"")
    assert result.hard_state == HardState(state.term, state.vote, state.commit)
    theirs = entries_by_layout(records)
    assert [(e.term, e.index, int(e.type), e.data) for e in result.entries] == [
        (e.Term, e.Index, e.Type, e.Data) for e in theirs
    ]


def test_the_recorded_snapshots_have_their_files(go_data: Path) -> None:
    recorded = wal.valid_snapshots(go_data / "member" / "wal")
    files = {path.name for path in (go_data / "member" / "snap").glob("*.snap")}
    assert {f"{each.term:016x}-{each.index:016x}.snap" for each in recorded[1:]} == files
    assert len(files) >= 2
    assert wal.latest_snapshot(go_data / "member" / "wal") == recorded[-1]
    member = pb.Metadata.FromString(wal.read_log(go_data / "member" / "wal").metadata).NodeID
    assert all(each.conf_state and each.conf_state.voters == (member,) for each in recorded[1:])


def test_the_bytes_of_a_real_log_are_ours(go_data: Path) -> None:
    """What etcd wrote, decoded and encoded by us, is the same file."""
    directory = go_data / "member" / "wal"
    first = min(directory.glob("*.wal"))
    written = first.read_bytes()
    rebuilt = bytearray()
    crc = 0
    for record in wal_layout.segment_records(first):
        if record.kind == wal_layout.ENTRY:
            encoder = wal.Encoder(b"", crc=crc, offset=len(rebuilt))
            entry = raftpb.Entry.FromString(record.data or b"")
            ours = Entry(entry.Term, entry.Index, EntryType(entry.Type), entry.Data)
            rebuilt += b"".join(encoder.encode(None, [ours]).chunks)
        elif record.kind == wal_layout.STATE:
            encoder = wal.Encoder(b"", crc=crc, offset=len(rebuilt))
            state = raftpb.HardState.FromString(record.data or b"")
            ours_state = HardState(state.term, state.vote, state.commit)
            rebuilt += b"".join(encoder.encode(ours_state, []).chunks)
        else:
            rebuilt += written[record.offset : record.end]
        crc = record.crc
    assert rebuilt == written[: len(rebuilt)]
    assert not written[len(rebuilt) :].strip(b"\0")


def internal_put(key: bytes, value: bytes, number: int) -> bytes:
    request = pb.InternalRaftRequest(put=pb.PutRequest(key=key, value=value))
    request.header.ID = number
    return request.SerializeToString()


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("small") / "data"
    with GoEtcd(data, "--unsafe-no-fsync") as server:
        for i in range(60):
            put(server, b"key%d" % i, bytes([1 + i]) * 700)
    # Applied entries are in the database already; without it the log alone must tell them.
    for path in (data / "member" / "snap").iterdir():
        path.unlink()
    tail = max((data / "member" / "wal").glob("*.wal"))
    os.truncate(tail, wal_layout.segment_records(tail)[-1].end + 8192)
    return data


def test_etcd_goes_on_where_we_wrote(small_data: Path, tmp_path: Path) -> None:
    """We open its log, add committed puts over a cut, and it applies them and goes on."""
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    directory = data / "member" / "wal"
    log, before = open_log(directory, unsafe_no_fsync=True)
    last = before.entries[-1]
    term, vote, _ = before.hard_state
    index = last.index
    for i in range(VALUES):
        index += 1
        request = internal_put(b"ours%d" % i, bytes([i]) * VALUE, 1000 + i)
        entries = [Entry(last.term, index, EntryType.NORMAL, request)]
        log.write(log.encode(HardState(term, vote, index), entries))
    log.close()
    assert len(list(directory.glob("*.wal"))) == 2
    wal_layout.check_log(directory, extend)
    with GoEtcd(data, "--unsafe-no-fsync") as server:
        assert get(server, b"key59") == bytes([60]) * 700
        assert get(server, b"ours0") == bytes(VALUE)
        assert get(server, b"ours%d" % (VALUES - 1)) == bytes([VALUES - 1]) * VALUE
        put(server, b"after", b"both")
    wal_layout.check_log(directory, extend)
    new = wal.read_log(directory).entries[index:]
    assert any(b"after" in entry.data for entry in new)


# What each makes of damage. The log is small so that the server starts fast.


def test_each_sees_the_locks_of_the_other(small_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    directory = data / "member" / "wal"
    with GoEtcd(data, "--unsafe-no-fsync"):
        with pytest.raises(wal.SegmentLocked, match="held by another process"):
            open_log(directory)
        assert wal.read_log(directory).entries
    log, _ = open_log(directory)
    with GoEtcd(data, may_fail=True) as server:
        assert not server.ready
    assert any("file already locked" in line for line in server.log)
    log.close()


@dataclass
class Victim:
    content: bytearray
    records: list[wal_layout.LaidOut]
    draw: random.Random

    @property
    def used(self) -> int:
        return self.records[-1].end

    def entry(self) -> wal_layout.LaidOut:
        """One of the later entries with a value."""
        long = [record for record in self.records if record.end - record.offset > 600]
        return self.draw.choice(long[20:])


def _cut_in_a_record(victim: Victim) -> None:
    entry = victim.entry()
    del victim.content[entry.offset + victim.draw.randrange(9, 600) :]


def _cut_in_a_length(victim: Victim) -> None:
    del victim.content[victim.entry().offset + 5 :]


def _cut_between(victim: Victim) -> None:
    del victim.content[victim.entry().offset :]


def _zero_tail(victim: Victim) -> None:
    entry = victim.entry()
    start = (entry.offset // 512 + 1) * 512
    victim.content[start : victim.used] = bytes(victim.used - start)


def _flip(victim: Victim) -> None:
    entry = victim.entry()
    victim.content[entry.offset + victim.draw.randrange(100, 500)] ^= 0x40


def _flip_type(victim: Victim) -> None:
    victim.content[victim.entry().offset + 9] ^= 0x10


def _too_long(victim: Victim) -> None:
    victim.content[victim.entry().offset + 2] = 0x70


def _junk_after(victim: Victim) -> None:
    start = victim.used + 8
    victim.content[start:] = victim.draw.randbytes(len(victim.content) - start)


def _junk_at_the_end(victim: Victim) -> None:
    start = victim.used + 8
    victim.content[victim.used : start] = (3000).to_bytes(8, "little")
    victim.content[start:] = victim.draw.randbytes(len(victim.content) - start)


DAMAGE: list[Callable[[Victim], None]] = [
    _cut_in_a_record,
    _cut_in_a_length,
    _cut_between,
    _zero_tail,
    _flip,
    _flip_type,
    _too_long,
    _junk_after,
    _junk_at_the_end,
]


@dataclass
class Verdict:
    damage: str
    starts: bool
    repaired: bool
    """Whether a copy of the damaged segment was set aside."""
    entries: int
    log: list[str]


def _spoil(source: Path, target: Path, damage: Callable[[Victim], None]) -> None:
    shutil.copytree(source, target)
    tail = max((target / "member" / "wal").glob("*.wal"))
    draw = random.Random(damage.__name__)
    victim = Victim(bytearray(tail.read_bytes()), wal_layout.segment_records(tail), draw)
    damage(victim)
    tail.write_bytes(victim.content)


def _theirs(data: Path, damage: str, known: list[Entry]) -> Verdict:
    with GoEtcd(data, "--unsafe-no-fsync", may_fail=True) as server:
        starts = server.ready
    directory = data / "member" / "wal"
    kept = 0
    if starts:
        entries = wal.read_log(directory).entries
        both = zip(entries, known, strict=False)
        kept = next((i for i, (a, b) in enumerate(both) if a != b), len(known))
    repaired = bool(list(directory.glob("*.broken")))
    return Verdict(damage, starts, repaired, kept, server.messages())


def _ours(data: Path, damage: str) -> Verdict:
    directory = data / "member" / "wal"
    try:
        log, result = open_log(directory)
        log.close()
    except wal.WALError as error:
        return Verdict(damage, False, bool(list(directory.glob("*.broken"))), 0, [str(error)])
    repaired = bool(list(directory.glob("*.broken")))
    return Verdict(damage, True, repaired, len(result.entries), [])


def test_we_judge_damage_as_etcd_does(small_data: Path, tmp_path: Path) -> None:
    known = wal.read_log(small_data / "member" / "wal").entries
    for damage in DAMAGE:
        for side in ("ours", "theirs"):
            _spoil(small_data, tmp_path / side / damage.__name__, damage)
    with ThreadPoolExecutor(4) as pool:
        theirs = pool.map(
            lambda name: _theirs(tmp_path / "theirs" / name, name, known),
            [damage.__name__ for damage in DAMAGE],
        )
        verdicts = {verdict.damage: verdict for verdict in theirs}
    for damage in DAMAGE:
        name = damage.__name__
        ours, other = _ours(tmp_path / "ours" / name, name), verdicts[name]
        assert (ours.starts, ours.repaired, ours.entries) == (
            other.starts,
            other.repaired,
            other.entries,
        ), (ours, other)
