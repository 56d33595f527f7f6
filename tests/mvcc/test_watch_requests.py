"""Requests of a Watch call and the replies to them, etcd's to the letter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mvcc.watch_kit import CLUSTER, MEMBER, TERM, Client, FakeStore, Kit, brief, told

from kvorum import errors
from kvorum.mvcc.watch import WatchLimits
from kvorum.pb import etcdserverpb as pb

COMPACTED = "etcdserver: mvcc: required revision has been compacted"
EMPTY = "mvcc: watcher range is empty"
DUPLICATE = "mvcc: duplicate watch ID provided on the WatchStream"
DENIED = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"


@pytest.fixture
def kit() -> Kit:
    return Kit(FakeStore())


def reply(revision: int = 1, **fields: Any) -> pb.WatchResponse:
    head = pb.ResponseHeader(
        cluster_id=CLUSTER, member_id=MEMBER, revision=revision, raft_term=TERM
    )
    return pb.WatchResponse(header=head, **fields)


def test_created_reply_has_the_store_revision(kit: Kit) -> None:
    client = kit.client()
    kit.put(b"x")
    client.watch(b"a")
    assert client.read() == [reply(2, watch_id=0, created=True)]


def test_ids_count_up_and_step_over_chosen_ones(kit: Kit) -> None:
    client = kit.client()
    for chosen in (0, 2, 7, 0, 0, 0):
        client.watch(b"a", watch_id=chosen)
    client.cancel(0)
    client.watch(b"a")
    got = [r.watch_id for r in client.read() if r.created]
    assert got == [0, 2, 7, 1, 3, 4, 5], "a freed id is not taken again by itself"


def test_a_cancelled_id_may_be_chosen_again(kit: Kit) -> None:
    client = kit.client()
    client.watch(b"a", watch_id=9)
    client.cancel(9)
    client.watch(b"b", watch_id=9)
    kit.put(b"a")
    kit.put(b"b")
    replies = client.read()
    assert [r.canceled for r in replies] == [False, True, False, False]
    assert told(replies) == ["put b=v@3"]


def test_negative_ids_can_be_chosen(kit: Kit) -> None:
    client = kit.client()
    assert client.opened(b"a", watch_id=-5) == reply(1, watch_id=-5, created=True)
    kit.put(b"a")
    assert [r.watch_id for r in client.read()] == [-5]


Refusal = tuple[dict[str, Any], str]
REFUSALS: dict[str, Refusal] = {
    "negative start": ({"key": b"a", "start_revision": -1}, COMPACTED),
    "negative start comes before permission": ({"key": b"secret", "start_revision": -9}, COMPACTED),
    "no permission": ({"key": b"secret"}, DENIED),
    "permission comes before range": ({"key": b"secret", "end": b"a"}, DENIED),
    "end below key": ({"key": b"b", "end": b"a"}, EMPTY),
    "end at key": ({"key": b"b", "end": b"b"}, EMPTY),
    "range comes before id": ({"key": b"b", "end": b"b", "watch_id": 3}, EMPTY),
    "id in use": ({"key": b"b", "watch_id": 3}, DUPLICATE),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(kit: Kit, case: str) -> None:
    fields, reason = REFUSALS[case]
    client = kit.client(check=lambda key, end: DENIED if key == b"secret" else None)
    client.opened(b"a", watch_id=3)
    kit.put(b"x")
    fields = dict(fields)
    client.watch(fields.pop("key"), fields.pop("end", b""), **fields)
    expected = reply(2, watch_id=-1, created=True, canceled=True, cancel_reason=reason)
    assert client.read() == [expected]
    kit.put(b"b")
    kit.put(b"secret")
    assert client.read() == [], "nothing was created"
    assert kit.hub.watcher_total == 1


def test_the_check_is_asked_about_the_range_as_requested(kit: Kit) -> None:
    asked: list[tuple[bytes, bytes]] = []

    def check(key: bytes, end: bytes) -> None:
        asked.append((key, end))

    client = kit.client(check=check)
    client.watch(b"", b"\0")
    client.watch(b"a", b"b")
    client.watch(b"a")
    assert asked == [(b"\0", b"\0"), (b"a", b"b"), (b"a", b"")]


RANGES: dict[str, tuple[bytes, bytes, list[bytes]]] = {
    "one key": (b"b", b"", [b"b"]),
    "empty key is the zero byte": (b"", b"", [b"\0"]),
    "half open": (b"b", b"c", [b"b", b"b\0", b"ba"]),
    "to the end": (b"b", b"\0", [b"b", b"b\0", b"ba", b"c", b"\xff\xff"]),
    "everything": (b"", b"\0", [b"\0", b"a", b"b", b"b\0", b"ba", b"c", b"\xff\xff"]),
    "everything, spelled out": (
        b"\0",
        b"\0",
        [b"\0", b"a", b"b", b"b\0", b"ba", b"c", b"\xff\xff"],
    ),
    "from the empty key on": (b"", b"b", [b"\0", b"a"]),
}


@pytest.mark.parametrize("case", RANGES)
@pytest.mark.parametrize("start", [0, 2])
def test_ranges(kit: Kit, case: str, start: int) -> None:
    key, end, expected = RANGES[case]
    client = kit.client()
    if not start:
        client.opened(key, end)
    for each in (b"\0", b"a", b"b", b"b\0", b"ba", b"c", b"\xff\xff"):
        kit.put(each)
    if start:
        client.opened(key, end, start_revision=start)
        kit.settle()
    assert [e.kv.key for r in client.read() for e in r.events] == expected


def test_cancel_ends_a_watch_and_says_so_once(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a")
    client.cancel(0)
    client.cancel(0)
    client.cancel(77)
    kit.put(b"a")
    assert client.read() == [reply(1, watch_id=0, canceled=True)]
    assert kit.hub.watcher_total == 0


def test_a_request_of_no_kind_is_ignored(kit: Kit) -> None:
    client = kit.client()
    client.stream.handle(pb.WatchRequest())
    assert client.read() == []


def test_unknown_filters_are_ignored(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", filters=[17])
    kit.put(b"a")
    assert told(client.read()) == ["put a=v@2"]


# Progress on request


def test_progress_tells_the_revision_under_no_id(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a")
    client.opened(b"b", start_revision=2)
    kit.put(b"x")
    client.ask_progress()
    assert client.read() == [reply(2, watch_id=-1)]


def test_progress_of_a_stream_without_watches_is_nothing(kit: Kit) -> None:
    client = kit.client()
    client.ask_progress()
    assert client.read() == []


def behind_history(kit: Kit, client: Client) -> None:
    kit.put(b"a")
    client.watch(b"a", start_revision=1)


def behind_a_full_sink(kit: Kit, client: Client) -> None:
    client.sink.room = 2
    client.watch(b"a")
    for _ in range(3):
        kit.put(b"a")


def ahead(kit: Kit, client: Client) -> None:
    client.watch(b"a", start_revision=100)


@pytest.mark.parametrize("lag", [behind_history, behind_a_full_sink, ahead])
def test_progress_waits_for_nobody_and_answers_only_when_all_have_everything(
    kit: Kit, lag: Callable[[Kit, Client], None]
) -> None:
    client = kit.client()
    client.watch(b"z")
    lag(kit, client)
    client.ask_progress()
    assert -1 not in [r.watch_id for r in client.read()]
    if lag is ahead:
        kit.batch(*([(b"x", b"v")] for _ in range(98)))
        assert kit.hub.rev == 99
    kit.settle()
    client.read()
    client.ask_progress()
    assert client.read() == [reply(kit.hub.rev, watch_id=-1)]


def test_progress_is_what_was_notified_not_what_the_store_has(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a")
    changes = kit.store.write((b"a", b"1"))
    client.ask_progress()
    kit.hub.notify(changes)
    before, event = client.read()
    assert before.header.revision == 1
    assert brief(event) == ["put a=1@2"]


def test_progress_is_not_held_up_by_a_compacted_watch(kit: Kit) -> None:
    client = kit.client()
    for _ in range(5):
        kit.put(b"a")
    kit.store.compact(4)
    client.watch(b"a", start_revision=2)
    client.watch(b"b")
    kit.settle()
    client.read()
    client.ask_progress()
    assert client.read() == [reply(6, watch_id=-1)]


def test_progress_asked_of_a_full_sink_follows_later_once(kit: Kit) -> None:
    client = kit.client(room=2)
    client.watch(b"a")
    client.watch(b"b")
    for _ in range(10):
        client.ask_progress()
    assert len(client.sink.sent) == 2, "nothing is piled up"
    client.read()
    assert client.read() == [reply(1, watch_id=-1)]
    assert client.read() == []


# Ends and bounds


def test_close_forgets_everything(kit: Kit) -> None:
    client = kit.client(room=3)
    client.watch(b"a")  # will be blocked
    client.watch(b"b", start_revision=50)  # ahead
    client.watch(b"c")  # synced
    kit.put(b"a")
    client.watch(b"d", start_revision=1)  # behind
    assert kit.hub.slow_watcher_total == 2
    client.stream.close()
    client.stream.close()
    assert (kit.hub.watcher_total, kit.hub.slow_watcher_total, kit.hub.stream_total) == (0, 0, 0)
    client.sink.sent.clear()
    client.stream.on_writable()
    client.watch(b"a")
    client.cancel(0)
    client.ask_progress()
    kit.put(b"a")
    kit.settle()
    assert client.sink.sent == []


def test_a_client_that_never_reads_is_cut_off() -> None:
    kit = Kit(FakeStore(), WatchLimits(control_backlog=5))
    client = kit.client(room=1)
    for _ in range(6):
        client.watch(b"a")
    with pytest.raises(errors.RequestTooManyRequests):
        client.watch(b"a")
    with pytest.raises(errors.RequestTooManyRequests):
        client.cancel(0)
    client.read()
    client.watch(b"a")
    assert client.read()[0].created


def test_metrics_follow_the_hub() -> None:
    kit = Kit(FakeStore())
    metrics = kit.hub._metrics
    client = kit.client(room=3)
    client.watch(b"a")
    client.watch(b"a")
    assert metrics.watch_streams.read() == 1
    assert metrics.watchers.read() == 2
    kit.put(b"a")
    assert metrics.slow_watchers.read() == 1
    assert metrics.events.value == 1
    client.read()
    kit.settle()
    assert metrics.slow_watchers.read() == 0
    assert metrics.events.value == 2
