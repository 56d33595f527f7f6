"""Raft's own codec against the protobuf library's, and against bytes of real etcd releases."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.pb import raftpb
from kvorum.raft import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    DecodeError,
    Entry,
    EntryType,
    HardState,
    Message,
    MsgType,
    Snapshot,
    SnapshotMetadata,
    codec,
)
from kvorum.raft.wire import fields, read_varint, varint

# Numbers of all lengths are likely, also just below and above the end of a varint's byte.
uints = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 63).flatmap(lambda bits: st.integers((1 << bits) - 1, (1 << bits) + 1)),
)
payloads = st.binary(max_size=200) | st.integers(120, 17000).map(lambda size: b"x" * size)
member_lists = st.lists(uints, max_size=4).map(tuple)

entries = st.builds(Entry, uints, uints, st.sampled_from(EntryType), payloads)
hard_states = st.builds(HardState, uints, uints, uints)
conf_states = st.builds(
    ConfState, member_lists, member_lists, member_lists, member_lists, st.booleans()
)
metadata = st.builds(SnapshotMetadata, conf_states, uints, uints)
snapshots = st.builds(Snapshot, payloads, metadata)
singles = st.builds(ConfChangeSingle, st.sampled_from(ConfChangeType), uints)
changes = st.builds(ConfChange, st.sampled_from(ConfChangeType), uints, payloads, uints)
changes_v2 = st.builds(
    ConfChangeV2,
    st.sampled_from(ConfChangeTransition),
    st.lists(singles, max_size=3).map(tuple),
    payloads,
)


def messages_with(responses: st.SearchStrategy[list[Message]]) -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        st.sampled_from(MsgType),
        uints,
        uints,
        uints,
        log_term=uints,
        index=uints,
        entries=st.lists(entries, max_size=3),
        commit=uints,
        vote=uints,
        snapshot=st.none() | snapshots.filter(lambda one: one != Snapshot()),
        reject=st.booleans(),
        reject_hint=uints,
        context=payloads,
        responses=responses,
    )


messages = messages_with(st.lists(messages_with(st.just([])), max_size=2))


# --- the same values as protobuf messages; ``full`` writes zero fields too


def pb_entry(entry: Entry, full: bool) -> Any:
    pb = raftpb.Entry()
    for name, value in (("Type", entry.type), ("Term", entry.term), ("Index", entry.index)):
        set_field(pb, name, value, full)
    set_field(pb, "Data", entry.data, False)
    return pb


def set_field(pb: Any, name: str, value: Any, full: bool) -> None:
    if value or full:
        setattr(pb, name, value)


def pb_conf_state(state: ConfState, full: bool) -> Any:
    pb = raftpb.ConfState(
        voters=state.voters,
        learners=state.learners,
        voters_outgoing=state.voters_outgoing,
        learners_next=state.learners_next,
    )
    set_field(pb, "auto_leave", state.auto_leave, full)
    return pb


def pb_metadata(meta: SnapshotMetadata, full: bool) -> Any:
    pb = raftpb.SnapshotMetadata(conf_state=pb_conf_state(meta.conf_state, full))
    set_field(pb, "index", meta.index, full)
    set_field(pb, "term", meta.term, full)
    return pb


def pb_snapshot(snapshot: Snapshot, full: bool) -> Any:
    pb = raftpb.Snapshot(metadata=pb_metadata(snapshot.metadata, full))
    set_field(pb, "data", snapshot.data, False)
    return pb


def pb_message(m: Message, full: bool) -> Any:
    pb = raftpb.Message()
    scalars = {
        "type": m.type,
        "to": m.to,
        "from": m.from_,
        "term": m.term,
        "logTerm": m.log_term,
        "index": m.index,
        "commit": m.commit,
        "reject": m.reject,
        "rejectHint": m.reject_hint,
    }
    for name, value in scalars.items():
        set_field(pb, name, value, full)
    set_field(pb, "vote", m.vote, False)
    set_field(pb, "context", m.context, False)
    pb.entries.extend(pb_entry(entry, full) for entry in m.entries)
    pb.responses.extend(pb_message(response, full) for response in m.responses)
    if m.snapshot is not None:
        pb.snapshot.CopyFrom(pb_snapshot(m.snapshot, full))
    return pb


def pb_change(cc: ConfChange, full: bool) -> Any:
    pb = raftpb.ConfChange()
    for name, value in (("id", cc.id), ("type", cc.type), ("node_id", cc.node_id)):
        set_field(pb, name, value, full)
    set_field(pb, "context", cc.context, False)
    return pb


def pb_change_v2(cc: ConfChangeV2, full: bool) -> Any:
    pb = raftpb.ConfChangeV2()
    set_field(pb, "transition", cc.transition, full)
    set_field(pb, "context", cc.context, False)
    for single in cc.changes:
        one = pb.changes.add()
        set_field(one, "type", single.type, full)
        set_field(one, "node_id", single.node_id, full)
    return pb


# --- written as etcd 3.5 writes, read in either style


@given(entries)
def test_entry(entry):
    data = codec.encode_entry(entry)
    assert data == pb_entry(entry, full=True).SerializeToString()
    assert codec.decode_entry(data) == entry
    assert codec.decode_entry(pb_entry(entry, full=False).SerializeToString()) == entry


@given(hard_states)
def test_hard_state(state):
    pb = raftpb.HardState(term=state.term, vote=state.vote, commit=state.commit)
    data = codec.encode_hard_state(state)
    assert data == pb.SerializeToString()
    assert codec.decode_hard_state(data) == state


@given(conf_states)
def test_conf_state(state):
    data = codec.encode_conf_state(state)
    assert data == pb_conf_state(state, full=True).SerializeToString()
    assert codec.decode_conf_state(data) == state
    assert codec.decode_conf_state(pb_conf_state(state, full=False).SerializeToString()) == state


def test_packed_members_are_read_too():
    packed = b"\x0a\x03\x01\xac\x02" + b"\x08\x07"
    assert codec.decode_conf_state(packed) == ConfState(voters=(1, 300, 7))


@given(snapshots)
def test_snapshot(snapshot):
    data = codec.encode_snapshot(snapshot)
    assert data == pb_snapshot(snapshot, full=True).SerializeToString()
    assert codec.decode_snapshot(data) == snapshot
    assert codec.decode_snapshot(pb_snapshot(snapshot, full=False).SerializeToString()) == snapshot
    meta = codec.encode_snapshot_metadata(snapshot.metadata)
    assert codec.decode_snapshot_metadata(meta) == snapshot.metadata


@given(changes)
def test_conf_change(cc):
    kind, data = codec.encode_conf_change(cc)
    assert kind is EntryType.CONF_CHANGE
    assert data == pb_change(cc, full=True).SerializeToString()
    assert codec.decode_entry_conf_change(Entry(type=kind, data=data)) == cc
    assert codec.decode_conf_change(pb_change(cc, full=False).SerializeToString()) == cc


@given(changes_v2)
def test_conf_change_v2(cc):
    kind, data = codec.encode_conf_change(cc)
    assert kind is EntryType.CONF_CHANGE_V2
    assert data == pb_change_v2(cc, full=True).SerializeToString()
    assert codec.decode_entry_conf_change(Entry(type=kind, data=data)) == cc
    assert codec.decode_conf_change_v2(pb_change_v2(cc, full=False).SerializeToString()) == cc


def test_leaving_a_joint_configuration_takes_no_bytes():
    kind, data = codec.encode_conf_change(None)
    assert (kind, data) == (EntryType.CONF_CHANGE_V2, b"")
    assert codec.decode_entry_conf_change(Entry(type=kind, data=data)) == ConfChangeV2()


def test_a_plain_entry_is_no_conf_change():
    with pytest.raises(DecodeError, match="EntryNormal is no configuration change"):
        codec.decode_entry_conf_change(Entry())


@given(messages)
def test_message(m):
    data = codec.encode_message(m)
    assert data == pb_message(m, full=True).SerializeToString()
    assert codec.decode_message(data) == m
    assert codec.decode_message(pb_message(m, full=False).SerializeToString()) == m


# --- bytes of real releases


@pytest.mark.parametrize("data", ["08 00 10 02 18 02", "10 02 18 02"])
def test_an_empty_entry_of_3_5_and_of_3_7(data):
    assert codec.decode_entry(bytes.fromhex(data)) == Entry(term=2, index=2)


def test_the_empty_snapshot_that_3_5_sends_with_every_message_is_left_out():
    head = codec.encode_message(Message(MsgType.HEARTBEAT, 2, 1, 3, commit=7))
    empty = bytes.fromhex("4a 0a 12 08 0a 02 28 00 10 00 18 00")
    m = codec.decode_message(head + empty)
    assert m == Message(MsgType.HEARTBEAT, 2, 1, 3, commit=7)
    assert m.snapshot is None


def test_what_rides_along_is_not_encoded():
    plain, loaded = Entry(1, 2, data=b"x"), Entry(1, 2, data=b"x", local=object())
    assert codec.encode_entry(loaded) == codec.encode_entry(plain)
    assert codec.decode_entry(codec.encode_entry(loaded)).local is None


def test_unknown_fields_are_passed_over():
    unknown = b"\xa0\x06\x01" + b"\xaa\x06\x02hi" + b"\xa9\x06" + bytes(8) + b"\xad\x06" + bytes(4)
    entry = Entry(5, 6, data=b"x")
    assert codec.decode_entry(codec.encode_entry(entry) + unknown) == entry
    m = Message(MsgType.APP, 1, 2, 3, entries=[entry])
    assert codec.decode_message(unknown + codec.encode_message(m)) == m


def test_the_entry_cache_is_bounded():
    for term in range(1000):
        entry = Entry(term, 1 << 20, data=b"x")
        assert codec.encode_entry(entry) == pb_entry(entry, full=True).SerializeToString()
    assert len(codec._heads) <= codec._MOST_HEADS


@given(st.lists(st.tuples(uints, uints), min_size=1))
def test_the_caches_of_messages_are_bounded(pairs):
    for to, from_ in pairs:
        m = Message(MsgType.APP_RESP, to, from_, 7)
        assert codec.decode_message(codec.encode_message(m)) == m
    for to in range(1 << 63, (1 << 63) + 1000):
        m = Message(MsgType.APP_RESP, to, to + 5, 7)
        assert codec.decode_message(codec.encode_message(m)) == m
    assert len(codec._message_heads) <= codec._MOST_PARTS
    assert len(codec._member_ids) <= codec._MOST_PARTS


# --- the short path of entries that follow each other


def outcome(decode, *args):
    try:
        return decode(*args)
    except DecodeError as error:
        return str(error)


@given(entries, st.binary(max_size=3))
def test_an_entry_that_was_expected(entry, around):
    raw = codec.encode_entry(entry)
    buf = around + raw + around
    start, end = len(around), len(around) + len(raw)
    assert codec.decode_next_entry(buf, start, end, entry.term, entry.index) == entry
    assert codec.decode_next_entry(buf, start, end, entry.term, entry.index + 1) == entry
    assert codec.decode_entry(buf, start, end) == entry


@pytest.mark.plain
def test_an_expected_entry_is_not_parsed(monkeypatch):
    monkeypatch.setattr(codec, "_read_entry", None)
    for size in (1, 127, 128, 16383):
        entry = Entry(3, 1 << 20, data=b"x" * size)
        for raw in (codec.encode_entry(entry), pb_entry(entry, full=False).SerializeToString()):
            assert codec.decode_next_entry(raw, 0, len(raw), 3, 1 << 20) == entry


@given(entries, st.data())
def test_damage_shows_on_the_short_path_as_on_the_other(entry, data):
    raw = bytearray(codec.encode_entry(entry))
    raw[data.draw(st.integers(0, min(40, len(raw)) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(raw)))
    damaged = bytes(raw)
    expected = outcome(codec.decode_entry, damaged, 0, end)
    assert outcome(codec.decode_next_entry, damaged, 0, end, entry.term, entry.index) == expected


# --- damaged bytes

DECODERS = [
    codec.decode_entry,
    codec.decode_hard_state,
    codec.decode_conf_state,
    codec.decode_snapshot,
    codec.decode_snapshot_metadata,
    codec.decode_conf_change,
    codec.decode_conf_change_v2,
    codec.decode_message,
]


@given(st.sampled_from(DECODERS), st.binary(max_size=60))
def test_junk_is_refused_or_read_but_never_worse(decode, junk):
    with suppress(DecodeError):
        decode(junk)


@given(messages, st.data())
def test_a_damaged_message_is_refused_or_read_but_never_worse(m, data):
    raw = bytearray(codec.encode_message(m))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        codec.decode_message(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@pytest.mark.parametrize(
    ("decode", "data", "complaint"),
    [
        (codec.decode_entry, b"\x22\x05abc", "truncated entry"),
        (codec.decode_entry, b"\x10", "bad varint"),
        (codec.decode_entry, b"\x10" + b"\x80" * 10, "bad varint"),
        (codec.decode_entry, b"\x08\x03", "EntryType has no value 3"),
        (codec.decode_entry, b"\x0b", "wire type 3 is not supported"),
        (codec.decode_entry, b"\x00", "field number 0"),
        (codec.decode_entry, b"\x29\x00", "truncated field"),
        (codec.decode_message, b"\x08\x18", "MsgType has no value 24"),
        (codec.decode_message, b"\x3a\x05\x08", "truncated message"),
        (codec.decode_conf_change, b"\x10\x04", "ConfChangeType has no value 4"),
        (codec.decode_conf_change_v2, b"\x08\x03", "ConfChangeTransition has no value 3"),
    ],
)
def test_what_is_wrong_is_said(decode, data, complaint):
    with pytest.raises(DecodeError, match=complaint):
        decode(data)


def test_responses_cannot_be_nested_without_end():
    m = Message(MsgType.STORAGE_APPEND)
    for _ in range(10):
        m = Message(MsgType.STORAGE_APPEND, responses=[m])
    with pytest.raises(DecodeError, match="nested too deep"):
        codec.decode_message(codec.encode_message(m))


# --- the wire format


@given(uints)
def test_varint(value):
    assert read_varint(varint(value), 0, 10) == (value, len(varint(value)))


def test_a_nested_message_cannot_read_beyond_its_end():
    with pytest.raises(DecodeError):
        list(fields(b"\x08\x80\x01", 0, 2))
