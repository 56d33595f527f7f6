"""The encoder against a reader that knows only the layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import wal_layout
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.pb import raftpb
from kvorum.raft.types import ConfState, Entry, EntryType, HardState
from kvorum.wal.encoder import Encoder, WriteBatch
from kvorum.wal.record import encode_frame
from kvorum.wal.snapshot import SnapshotRecord

Call = tuple[HardState | None, list[Entry]]


def entries_from(first: int, count: int, term: int = 1, size: int = 30) -> list[Entry]:
    return [Entry(term, first + i, EntryType.NORMAL, bytes([i % 251]) * size) for i in range(count)]


def lay_out(head: bytes, batches: list[WriteBatch]) -> list[bytes]:
    """The segments that writing these batches in order leaves."""
    segments = [head]
    for batch in batches:
        assert (batch.sequence, batch.offset) == (len(segments) - 1, len(segments[-1]))
        data = b"".join(batch.chunks)
        assert len(data) == batch.size
        segments[-1] += data
        if batch.cut is not None:
            assert batch.cut.size == len(segments[-1])
            segments.append(batch.cut.head)
    return segments


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    """Saves as raft makes them: indexes go on, or fall back when a new leader overrides some."""
    last = term = 0
    calls: list[Call] = []
    for _ in range(draw(st.integers(0, 8))):
        term += draw(st.integers(0, 2))
        first = max(1, last + 1 - draw(st.integers(0, 3)))
        data = draw(st.lists(st.binary(max_size=200), max_size=6))
        kinds = st.sampled_from(EntryType)
        entries = [Entry(term, first + i, draw(kinds), each) for i, each in enumerate(data)]
        last = entries[-1].index if entries else last
        state = HardState(term, draw(st.integers(0, (1 << 64) - 1)), draw(st.integers(0, last)))
        calls.append((draw(st.none() | st.just(state)), entries))
    return calls


@settings(deadline=None)
@given(histories(), st.sampled_from([100, 700, 1_000_000]))
def test_what_is_encoded_can_be_read_by_the_layout(
    tmp_path_factory: pytest.TempPathFactory, calls: list[Call], segment_size: int
) -> None:
    directory = tmp_path_factory.mktemp("wal")
    encoder = Encoder(b"meta", segment_size=segment_size)
    head = encoder.begin_segment()
    batches = [encoder.encode(state, entries) for state, entries in calls]
    segments = lay_out(head, batches)
    names = [f"{0:016x}-{0:016x}.wal"]
    names += [str(batch.cut.name) for batch in batches if batch.cut is not None]
    for name, content in zip(names, segments, strict=True):
        (directory / name).write_bytes(content)
    assert [len(segment) >= segment_size for segment in segments[:-1]] == [True] * (
        len(segments) - 1
    )
    seen = [r for r in wal_layout.check_log(directory) if r.kind == wal_layout.ENTRY]
    expected = [
        raftpb.Entry(Type=int(e.type), Term=e.term, Index=e.index, Data=e.data)
        for _, entries in calls
        for e in entries
    ]
    read = [raftpb.Entry.FromString(r.data or b"") for r in seen]
    assert [(e.Type, e.Term, e.Index, e.Data) for e in read] == [
        (e.Type, e.Term, e.Index, e.Data) for e in expected
    ]


@pytest.mark.plain
def test_checksums_of_every_length_are_written_as_short_as_protobuf_does(tmp_path: Path) -> None:
    """Sixteen in seventeen take five bytes; enough entries show the others too."""
    encoder = Encoder(b"meta")
    path = tmp_path / f"{0:016x}-{0:016x}.wal"
    path.write_bytes(
        encoder.begin_segment() + b"".join(encoder.encode(None, entries_from(1, 3000)).chunks)
    )
    records = wal_layout.segment_records(path)
    wal_layout.check_log(tmp_path)
    short = [record for record in records if record.crc < 1 << 28]
    assert len(short) > 100
    content = path.read_bytes()
    for record in records:
        frame = content[record.offset : record.end]
        assert frame == encode_frame(record.kind, record.crc, record.data)  # type: ignore[arg-type]


def test_entries_must_be_synced() -> None:
    assert Encoder(b"").encode(None, entries_from(1, 1)).sync
    assert not Encoder(b"").encode(None, []).sync


@pytest.mark.parametrize(
    ("state", "sync"),
    [
        pytest.param(HardState(4, 7, 100), False, id="nothing changed"),
        pytest.param(HardState(4, 7, 101), False, id="commit alone"),
        pytest.param(HardState(5, 7, 100), True, id="term"),
        pytest.param(HardState(4, 8, 100), True, id="vote"),
        pytest.param(HardState(), False, id="empty"),
    ],
)
def test_a_promise_must_be_synced(state: HardState, sync: bool) -> None:
    encoder = Encoder(b"", state=HardState(4, 7, 100))
    assert encoder.encode(state, []).sync is sync


def test_an_empty_state_is_not_written_and_does_not_replace_the_last() -> None:
    encoder = Encoder(b"", state=HardState(4, 7, 100))
    batch = encoder.encode(HardState(), [])
    assert (batch.size, batch.chunks) == (0, [])
    assert encoder.state == HardState(4, 7, 100)


def test_a_full_segment_ends_with_the_batch_that_filled_it() -> None:
    encoder = Encoder(b"m", segment_size=1000)
    encoder.begin_segment()
    batch = encoder.encode(HardState(3, 1, 9), entries_from(5, 100))
    assert batch.cut is not None
    assert batch.cut.size == batch.offset + batch.size > 1000
    assert str(batch.cut.name) == f"{1:016x}-{105:016x}.wal"
    assert batch.last_index == 104
    following = encoder.encode(None, entries_from(105, 1))
    assert (following.sequence, following.offset) == (1, len(batch.cut.head))


def test_a_cut_after_a_commit_alone_is_synced() -> None:
    encoder = Encoder(b"m", offset=1000, segment_size=1001, state=HardState(3, 1, 8))
    batch = encoder.encode(HardState(3, 1, 9), [])
    assert batch.cut is not None
    assert batch.sync


def test_the_next_segment_repeats_the_state_unless_it_is_empty(tmp_path: Path) -> None:
    for state, kinds in ((HardState(3, 1, 9), [4, 1, 3]), (HardState(), [4, 1])):
        encoder = Encoder(b"m", segment_size=1, state=state)
        cut = encoder.encode(None, entries_from(1, 1)).cut
        assert cut is not None
        (tmp_path / "head").write_bytes(cut.head)
        records = wal_layout.segment_records(tmp_path / "head")
        assert [record.kind for record in records] == kinds


def test_a_snapshot_ahead_of_the_log_moves_the_next_index() -> None:
    encoder = Encoder(b"m", last_index=10)
    batch = encoder.encode_snapshot(SnapshotRecord(500, 4, ConfState((1, 2))))
    assert (batch.sync, batch.last_index, batch.cut) == (True, 500, None)
    assert encoder.encode_snapshot(SnapshotRecord(400, 4, ConfState((1, 2)))).last_index == 500


def test_a_snapshot_without_its_configuration_is_refused() -> None:
    encoder = Encoder(b"m")
    before = (encoder.crc, encoder.offset)
    with pytest.raises(ValueError, match="the snapshot at 4/500 has no conf state"):
        encoder.encode_snapshot(SnapshotRecord(500, 4))
    assert (encoder.crc, encoder.offset) == before


def test_snapshot_records() -> None:
    conf = ConfState((1, 1 << 63), (4,), (5,), (6,), True)
    record = SnapshotRecord(7, 3, conf)
    assert SnapshotRecord.decode(record.encode()) == record
    assert SnapshotRecord().encode() == bytes.fromhex("08001000")
    assert SnapshotRecord.decode(b"") == SnapshotRecord()
    with pytest.raises(ValueError, match="not a snapshot record"):
        SnapshotRecord.decode(b"\x08")
