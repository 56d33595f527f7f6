"""Entry sizes against protobuf's own count, and the cutting of batches by size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvorum.pb import raftpb
from kvorum.raft import NO_LIMIT, Entry, EntryType
from kvorum.raft.sizes import entries_size, entry_size, payload_size, take, varint_size


def protobuf_size(entry: Entry) -> int:
    """The size that etcd 3.7 counts: a plain entry has no type field, an empty one no data."""
    pb = raftpb.Entry(Term=entry.term, Index=entry.index)
    if entry.type:
        pb.Type = entry.type
    if entry.data:
        pb.Data = entry.data
    return pb.ByteSize()


@st.composite
def batches(draw: st.DrawFn) -> list[Entry]:
    """Consecutive entries, often all alike, with growing terms."""
    first = draw(st.sampled_from([1, 120, 16380, 1 << 40]) | st.integers(1, 1 << 62))
    term = draw(st.sampled_from([1, 126, 16382]))
    alike = draw(st.booleans())
    entries = []
    for place in range(draw(st.integers(0, 12))):
        term += 0 if alike else draw(st.integers(0, 1))
        size = 10 if alike else draw(st.sampled_from([0, 1, 126, 127, 128, 129, 16400]))
        kind = EntryType.NORMAL if alike else draw(st.sampled_from(EntryType))
        entries.append(Entry(term, first + place, kind, b"x" * size))
    return entries


@given(batches())
def test_sizes_are_protobufs(entries):
    assert [entry_size(e) for e in entries] == [protobuf_size(e) for e in entries]
    assert entries_size(entries) == sum(protobuf_size(e) for e in entries)
    assert payload_size(entries) == sum(len(e.data) for e in entries)


def test_varint_size():
    assert [varint_size(n) for n in (0, 1, 127, 128, 16383, 16384, (1 << 64) - 1)] == [
        1,
        1,
        1,
        2,
        2,
        3,
        10,
    ]


@given(batches(), st.integers(0, 40000), st.data())
def test_take_is_the_longest_prefix_that_fits(entries, limit, data):
    start = data.draw(st.integers(0, len(entries)))
    stop = data.draw(st.integers(start, len(entries)))
    taken = take(entries, start, stop, limit)
    assert taken == entries[start : start + len(taken)]
    assert bool(taken) == (start < stop)
    if len(taken) > 1:
        assert entries_size(taken) <= limit
    if len(taken) < stop - start:
        assert entries_size(entries[start : start + len(taken) + 1]) > limit


def test_take_over_several_pages():
    entries = [Entry(1, index, data=b"x" * 10) for index in range(1, 5001)]
    size = entries_size(entries[:3000])
    assert len(take(entries, 0, 5000, size)) == 3000
    assert len(take(entries, 0, 5000, size - 1)) == 2999
    assert len(take(entries, 0, 5000, NO_LIMIT)) == 5000
    assert take(entries, 0, 5000, entries_size(entries)) == entries
    assert take(entries, 0, 2048, size) == entries[:2048]


def test_take_gives_a_copy():
    entries = [Entry(1, 1)]
    take(entries, 0, 1, NO_LIMIT).append(Entry(1, 2))
    take(entries, 0, 1, 0).append(Entry(1, 2))
    assert len(entries) == 1
