"""The bytes of responses, against the message objects."""

from __future__ import annotations

import pytest
from mvcc.watch_kit import header

from kvorum.mvcc import watch_wire as wire
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.types import Revision

SIZES = [0, 1, 100, 127, 128, 4093, 4094, 4095, 4096, 4097, 16383, 16384, 70000]


def record(size: int, rev: int = 300) -> bytes:
    return mvccpb.KeyValue(
        key=b"k", create_revision=rev, mod_revision=rev, version=1, value=b"v" * size
    ).SerializeToString()


def message(*events: mvccpb.Event, **fields: object) -> bytes:
    return pb.WatchResponse(events=events, **fields).SerializeToString()


@pytest.mark.parametrize("size", SIZES)
def test_put_events_are_as_protobuf_writes_them(size: int) -> None:
    kv, prev = record(size), record(size // 2, 5)
    pair, before = mvccpb.KeyValue.FromString(kv), mvccpb.KeyValue.FromString(prev)
    assert wire.put_event(kv) == message(mvccpb.Event(kv=pair))
    assert wire.put_event_with_prev(kv, prev) == message(mvccpb.Event(kv=pair, prev_kv=before))


@pytest.mark.parametrize("rev", [2, 127, 128, 1 << 40])
def test_a_delete_shows_its_revision_which_the_tombstone_lacks(rev: int) -> None:
    tombstone = mvccpb.KeyValue(key=b"gone")
    shown = mvccpb.KeyValue(key=b"gone", mod_revision=rev)
    prev = record(7)
    kind = mvccpb.Event.DELETE
    stored = tombstone.SerializeToString()
    assert wire.delete_event(stored, rev, None) == message(mvccpb.Event(type=kind, kv=shown))
    before = mvccpb.KeyValue.FromString(prev)
    expected = message(mvccpb.Event(type=kind, kv=shown, prev_kv=before))
    assert wire.delete_event(stored, rev, prev) == expected


@pytest.mark.parametrize("id", [0, 1, 127, 128, 1 << 62, -1, -(1 << 63)])
def test_watch_ids_of_all_kinds(id: int) -> None:
    assert wire.watch_id_field(id) == message(watch_id=id)


def test_cancel_tails() -> None:
    assert message(created=True) == wire.CREATED
    assert message(canceled=True) == wire.CANCELED
    assert wire.cancel_tail() == message(canceled=True)
    refused = message(created=True, canceled=True, cancel_reason="no")
    assert wire.cancel_tail(created=True, reason="no") == refused
    compacted = message(canceled=True, compact_revision=12)
    assert wire.cancel_tail(compact_rev=Revision(12)) == compacted


def parse(pieces: list[bytes]) -> list[pb.WatchResponse]:
    return [pb.WatchResponse.FromString(piece) for piece in pieces]


EVENTS = [wire.put_event(record(100, rev)) for rev in range(2, 12)]
FRONT = header(11) + wire.watch_id_field(4)
WHOLE = len(FRONT) + sum(map(len, EVENTS))


@pytest.mark.parametrize("limit", [1, 150, 240, 260, 400, 900, WHOLE - 1, WHOLE])
def test_fragments_are_small_complete_and_marked(limit: int) -> None:
    pieces = wire.fragments(FRONT, EVENTS, limit)
    responses = parse(pieces)
    assert len(pieces) > 1
    assert [r.fragment for r in responses] == [True] * (len(pieces) - 1) + [False]
    assert {(r.header.revision, r.watch_id) for r in responses} == {(11, 4)}
    assert [e.kv.mod_revision for r in responses for e in r.events] == list(range(2, 12))
    for piece, response in zip(pieces, responses, strict=True):
        assert len(piece) < limit or len(response.events) == 1
        assert response.SerializeToString() == piece, "fields are in order"
    for piece, after in zip(pieces, responses[1:], strict=False):
        following = after.events[0]
        assert len(piece) + len(message(following)) >= limit, "no room was left unused"


def test_no_fragments_below_the_limit_or_of_one_event() -> None:
    (whole,) = wire.fragments(FRONT, EVENTS, WHOLE + 1)
    assert whole == FRONT + b"".join(EVENTS)
    (single,) = wire.fragments(FRONT, EVENTS[:1], 10)
    assert single == FRONT + EVENTS[0]
