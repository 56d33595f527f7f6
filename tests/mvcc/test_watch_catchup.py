"""Watchers that are behind: history, full sinks, compaction, replaced stores; bounded steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from mvcc.watch_kit import Client, FakeStore, Kit, MakeKit, RealStore, brief, told

from kvorum.mvcc.watch import WatchLimits
from kvorum.pb import etcdserverpb as pb
from kvorum.types import Revision

SMALL = WatchLimits(slice_changes=4, slice_watchers=3, unblock_watchers=2)


@pytest.fixture(params=["fake", "real"])
def make_kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeKit]:
    store = FakeStore() if request.param == "fake" else RealStore(tmp_path)
    yield lambda limits=None: Kit(store, limits)
    store.close()


@pytest.fixture
def kit(make_kit: MakeKit) -> Kit:
    return make_kit()


def fill(kit: Kit, count: int, key: bytes = b"a") -> None:
    for i in range(count):
        kit.put(key, b"%d" % i)


def revisions(client: Client) -> list[int]:
    return [e.kv.mod_revision for r in client.read() for e in r.events]


# History


def test_history_then_the_present(kit: Kit) -> None:
    client = kit.client()
    fill(kit, 5)
    created = client.opened(b"a", start_revision=3)
    assert created.header.revision == 6
    assert kit.hub.slow_watcher_total == 1
    kit.settle()
    kit.put(b"a", b"new")
    (past, present) = client.read()
    assert brief(past) == ["put a=1@3", "put a=2@4", "put a=3@5", "put a=4@6"]
    assert past.header.revision == 6
    assert brief(present) == ["put a=new@7"]


@pytest.mark.parametrize(("start", "expected"), [(1, [2, 3, 4]), (3, [3, 4]), (4, [4]), (5, [5])])
def test_starts_around_the_present(kit: Kit, start: int, expected: list[int]) -> None:
    client = kit.client()
    fill(kit, 3)
    client.opened(b"a", start_revision=start)
    assert kit.hub.slow_watcher_total == (start < 5)
    kit.settle()
    kit.put(b"a")
    assert revisions(client) == [*expected, 5] if start < 5 else [5]


def test_a_start_in_the_future_is_not_notified_before(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", start_revision=5)
    assert kit.hub.slow_watcher_total == 0
    fill(kit, 3)
    assert client.read() == []
    fill(kit, 2)
    assert revisions(client) == [5, 6]


def test_a_start_in_the_middle_of_a_batch(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", start_revision=4)
    client.opened(b"a", start_revision=7)
    kit.batch(*([(b"a", b"v")] for _ in range(5)))
    kit.settle()
    (response,) = client.read()
    assert response.watch_id == 0
    assert [e.kv.mod_revision for e in response.events] == [4, 5, 6]
    kit.put(b"a")
    assert revisions(client) == [7, 7]


def test_a_watch_created_between_a_write_and_its_notice(kit: Kit) -> None:
    """It starts behind the store's revision, which its created reply tells."""
    client = kit.client()
    changes = kit.store.write((b"a", b"1")) + kit.store.write((b"a", b"2"))
    assert client.opened(b"a").header.revision == 3
    client.opened(b"a", start_revision=3)
    kit.hub.notify(changes)
    kit.settle()
    kit.put(b"a", b"3")
    events = sorted((r.watch_id, e.kv.mod_revision) for r in client.read() for e in r.events)
    assert events == [(0, 4), (1, 3), (1, 4)]


def test_the_largest_start_revision(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", start_revision=(1 << 63) - 1)
    fill(kit, 2)
    client.cancel(0)
    assert [r.canceled for r in client.read()] == [True]


def test_history_with_filters_ranges_and_previous_pairs(kit: Kit) -> None:
    kit.put(b"a", b"1")
    kit.write((b"a", b"2"), (b"b", b"1"), (b"c", b"1"))
    kit.delete(b"a")
    kit.write((b"a", b"3"), (b"b", None))
    client = kit.client()
    client.opened(b"a", b"c", start_revision=2, prev_kv=True)
    kit.settle()
    (response,) = client.read()
    assert brief(response) == [
        "put a=1@2",
        "put a=2@3 (1@2)",
        "put b=1@3",
        "del a@4 (2@3)",
        "put a=3@5",
        "del b@5 (1@3)",
    ]
    client.opened(b"a", b"c", start_revision=2, filters=[pb.WatchCreateRequest.NOPUT])
    kit.settle()
    assert told(client.read()) == ["del a@4", "del b@5"]


def test_a_previous_pair_before_the_compaction_is_left_out(kit: Kit) -> None:
    fill(kit, 4)
    kit.store.compact(4)
    client = kit.client()
    client.opened(b"a", start_revision=4, prev_kv=True)
    kit.settle()
    assert told(client.read()) == ["put a=2@4", "put a=3@5 (2@4)"]


# Slices


def test_steps_are_bounded_and_responses_whole(make_kit: MakeKit) -> None:
    kit = make_kit(SMALL)
    for _ in range(3):
        kit.write(*((b"k%d" % i, b"v") for i in range(3)))
    fill(kit, 3, b"k0")
    client = kit.client()
    client.opened(b"k", b"l", start_revision=2)
    assert kit.hub.sync_step()
    (first,) = client.read()
    assert [e.kv.mod_revision for e in first.events] == [2, 2, 2, 3, 3, 3], "to the revision's end"
    assert first.header.revision == 3, "the slice's last revision: what was read so far"
    assert kit.hub.sync_step()
    assert revisions(client) == [4, 4, 4, 5]
    assert not kit.hub.sync_step()
    (last,) = client.read()
    assert [e.kv.mod_revision for e in last.events] == [6, 7]
    assert last.header.revision == kit.hub.rev


def test_a_slice_is_bounded_in_bytes(make_kit: MakeKit) -> None:
    kit = make_kit(WatchLimits(slice_bytes=1000))
    for _ in range(4):
        kit.put(b"a", b"x" * 600)
    client = kit.client()
    client.opened(b"a", start_revision=2)
    assert kit.hub.sync_step()
    assert revisions(client) == [2, 3]
    assert not kit.hub.sync_step()
    assert revisions(client) == [4, 5]


def test_a_slice_without_events_moves_a_watcher_on(make_kit: MakeKit) -> None:
    kit = make_kit(SMALL)
    fill(kit, 10, b"other")
    client = kit.client()
    client.opened(b"a", start_revision=2)
    assert kit.settle() == 3
    assert client.read() == []
    assert kit.hub.slow_watcher_total == 0


def test_one_pass_over_history_serves_all() -> None:
    kit = Kit(FakeStore(), WatchLimits(slice_changes=4))
    fill(kit, 40)
    clients = [kit.client() for _ in range(20)]
    for i, client in enumerate(clients):
        client.opened(b"a", start_revision=2 + i)  # each at another place of the first half
    steps = kit.settle()
    assert steps == cast(FakeStore, kit.store).reads == 10
    for i, client in enumerate(clients):
        assert revisions(client) == list(range(2 + i, 42))


def test_few_watchers_at_a_time_but_all_in_the_end(make_kit: MakeKit) -> None:
    kit = make_kit(SMALL)
    fill(kit, 6)
    client = kit.client()
    for _ in range(8):
        client.watch(b"a", start_revision=2)
    client.read()
    kit.hub.sync_step()
    assert len(client.read()) == 3
    kit.settle()
    client.read()
    kit.put(b"a")
    assert [r.watch_id for r in client.read()] == list(range(8))


def test_a_short_lapse_does_not_wait_for_a_long_history() -> None:
    kit = Kit(FakeStore(), WatchLimits(slice_changes=10))
    fill(kit, 500)
    long, short = kit.client(), kit.client()
    long.opened(b"a", start_revision=2)
    short.opened(b"a", start_revision=498)
    kit.hub.sync_step()
    kit.hub.sync_step()
    assert revisions(short) == [498, 499, 500, 501]
    kit.settle()
    assert revisions(long) == list(range(2, 502))


def test_history_grows_while_it_is_read(make_kit: MakeKit) -> None:
    kit = make_kit(SMALL)
    fill(kit, 8)
    client = kit.client()
    client.opened(b"a", start_revision=2)
    for _ in range(6):
        kit.hub.sync_step()
        fill(kit, 2)
    kit.settle()
    assert revisions(client) == list(range(2, 22))


def test_the_owner_is_woken_once_for_work_to_do(kit: Kit) -> None:
    client = kit.client()
    fill(kit, 3)
    assert kit.woken == 0
    client.watch(b"a", start_revision=2)
    client.watch(b"a", start_revision=2)
    assert kit.woken == 1
    kit.settle()
    client.watch(b"a", start_revision=2)
    assert kit.woken == 2


def test_nothing_to_do(kit: Kit) -> None:
    assert not kit.hub.sync_step()


# Full sinks


def test_a_blocked_watcher_waits_for_its_sink_without_work(kit: Kit) -> None:
    client = kit.client(room=2)
    client.watch(b"a")
    fill(kit, 50)
    assert not kit.hub.sync_step()
    assert kit.woken == 0
    assert len(client.sink.sent) == 2
    client.read()
    assert kit.woken == 1
    kit.settle()
    assert revisions(client) == list(range(3, 52))


def test_a_sink_that_fills_up_again_and_again(make_kit: MakeKit) -> None:
    kit = make_kit(SMALL)
    client = kit.client(room=20)
    for _ in range(10):
        client.watch(b"a")
    client.sink.room = 3
    got: dict[int, list[int]] = {}
    fill(kit, 5)
    for _ in range(200):
        for response in client.read():
            revs = [e.kv.mod_revision for e in response.events]
            got.setdefault(response.watch_id, []).extend(revs)
        kit.settle()
    assert got == {id: [2, 3, 4, 5, 6] for id in range(10)}
    assert kit.hub.slow_watcher_total == 0


def test_cancel_and_close_while_blocked_or_about_to_resume(kit: Kit) -> None:
    client = kit.client(room=3)
    for _ in range(3):
        client.watch(b"a")
    fill(kit, 1)
    assert kit.hub.slow_watcher_total == 3
    client.cancel(0)
    assert kit.hub.slow_watcher_total == 2
    client.read()  # the sink is writable: the others are about to resume
    client.cancel(1)
    kit.settle()
    assert [(r.watch_id, r.canceled) for r in client.read()] == [(1, True), (2, False)]


def test_closed_while_about_to_resume(kit: Kit) -> None:
    client = kit.client(room=2)
    client.watch(b"a")
    fill(kit, 3)
    client.read()
    client.stream.close()
    assert not kit.hub.sync_step()
    assert client.sink.sent == []


def test_many_streams_resume_in_bounded_steps(make_kit: MakeKit) -> None:
    kit = make_kit(SMALL)
    clients = [kit.client(room=1) for _ in range(7)]
    for client in clients:
        client.watch(b"a")
    fill(kit, 1)
    assert kit.hub.slow_watcher_total == 7
    for client in clients:
        client.read()
    kit.hub.sync_step()
    assert kit.hub.blocked_total == 4
    assert sum(bool(client.sink.sent) for client in clients) == 3
    kit.settle()
    assert all(revisions(client) == [2] for client in clients)


def test_a_resumed_watcher_that_missed_nothing_is_synced_at_once(kit: Kit) -> None:
    """Blocked by a response of history, it was at the last revision already."""
    client = kit.client(room=1)
    fill(kit, 1)
    client.watch(b"a", start_revision=2)
    kit.settle()
    assert kit.hub.slow_watcher_total == 1
    client.read()
    kit.settle()
    assert revisions(client) == [2]
    assert kit.hub.slow_watcher_total == 0


# Connections that break while they are sent to


def breaking(kit: Kit, *, last: int, room: int | None = None) -> list[Client]:
    """Three calls on one connection that breaks when the second has been sent ``last`` messages,
    and a fourth on another."""
    clients = [kit.client() for _ in range(4)]
    clients[1].sink.last = last
    clients[1].sink.room = room
    clients[1].sink.closes = [c.stream for c in clients[:3]]
    return clients


def assert_one_left(kit: Kit, clients: list[Client], revs: list[int]) -> None:
    assert [c.stream.closed for c in clients] == [True, True, True, False]
    assert (kit.hub.watcher_total, kit.hub.stream_total, kit.hub.slow_watcher_total) == (1, 1, 0)
    kit.put(b"a")
    assert revisions(clients[3]) == [*revs, kit.hub.rev]


@pytest.mark.parametrize("fields", [{}, {"fragment": True}, {"prev_kv": True}])
def test_a_connection_breaks_during_a_notice(kit: Kit, fields: dict[str, bool]) -> None:
    clients = breaking(kit, last=2)
    for client in clients:
        client.watch(b"a", **fields)
    clients[0].watch(b"a", prev_kv=True)
    kit.batch([(b"a", b"1")])
    assert_one_left(kit, clients, [2])


def test_a_connection_breaks_after_a_neighbour_was_refused(kit: Kit) -> None:
    clients = breaking(kit, last=2)
    clients[0].sink.room = 1
    for client in clients:
        client.watch(b"a")
    kit.put(b"a")
    assert_one_left(kit, clients, [2])


def test_a_connection_breaks_during_history(kit: Kit) -> None:
    fill(kit, 2)
    clients = breaking(kit, last=2)
    for client in clients:
        client.watch(b"a", start_revision=2)
    kit.settle()
    assert_one_left(kit, clients, [2, 3])


def test_a_connection_breaks_while_compacted_watches_are_told(kit: Kit) -> None:
    fill(kit, 5)
    kit.store.compact(4)
    clients = breaking(kit, last=2)
    for client in clients[:3]:
        client.watch(b"a", start_revision=2)
    clients[3].watch(b"a", start_revision=4)
    kit.settle()
    assert_one_left(kit, clients, [4, 5, 6])


def test_a_connection_breaks_at_a_created_reply(kit: Kit) -> None:
    clients = breaking(kit, last=1)
    clients[3].watch(b"a")
    clients[0].watch(b"a")
    clients[1].watch(b"a")
    assert_one_left(kit, clients, [])


def test_a_connection_breaks_at_a_progress_notice(kit: Kit) -> None:
    clients = breaking(kit, last=2)
    for client in clients:
        client.watch(b"a", progress_notify=True)
    kit.hub.tick(700.0)
    assert_one_left(kit, clients, [])


def test_a_connection_breaks_when_it_resumes(kit: Kit) -> None:
    clients = breaking(kit, last=3, room=2)
    for client in clients:
        client.watch(b"a")
    clients[1].ask_progress()
    fill(kit, 1)
    clients[1].ask_progress()
    clients[1].sink.last = 1
    clients[1].read()
    kit.settle()
    fill(kit, 1)
    kit.settle()
    assert_one_left(kit, clients, [2, 3])


# Compaction


def test_a_start_below_the_compaction_is_created_and_then_cancelled(kit: Kit) -> None:
    fill(kit, 6)
    kit.store.compact(5)
    client = kit.client()
    client.watch(b"a", start_revision=4)
    kit.settle()
    created, canceled = client.read()
    assert (created.created, created.canceled, created.watch_id) == (True, False, 0)
    assert created.header.revision == 7
    expected = pb.WatchResponse.FromString(canceled.SerializeToString())
    expected.Clear()
    expected.header.CopyFrom(created.header)
    expected.header.revision = 0
    expected.canceled = True
    expected.compact_revision = 5
    assert canceled == expected, "no reason, and no revision in the header"
    assert kit.hub.watcher_total == 0


def test_a_start_at_the_compaction_is_served(kit: Kit) -> None:
    kit.put(b"a", b"1")
    kit.put(b"b", b"1")
    kit.delete(b"a")
    kit.store.compact(4)
    client = kit.client()
    client.opened(b"a", b"c", start_revision=4)
    kit.settle()
    assert told(client.read()) == ["del a@4"], "a tombstone at the compaction is kept"


def test_the_id_of_a_compacted_watch_is_taken_until_it_is_cancelled(kit: Kit) -> None:
    fill(kit, 4)
    kit.store.compact(4)
    client = kit.client()
    client.watch(b"a", start_revision=2, watch_id=5)
    kit.settle()
    client.read()
    assert client.opened(b"a", watch_id=5).canceled
    client.cancel(5)
    assert [(r.watch_id, r.canceled) for r in client.read()] == [(5, True)]
    assert client.opened(b"a", watch_id=5).canceled is False
    assert kit.hub.watcher_total == 1


def test_compaction_overtakes_watchers_that_read_history(make_kit: MakeKit) -> None:
    kit = make_kit(SMALL)
    fill(kit, 12)
    client = kit.client()
    for _ in range(5):
        client.watch(b"a", start_revision=2)
    client.watch(b"a", start_revision=11)
    kit.hub.sync_step()
    kit.hub.sync_step()
    client.read()
    kit.store.compact(10)
    kit.settle()
    canceled = sorted(r.watch_id for r in client.read() if r.compact_revision == 10)
    assert canceled == [0, 1, 2, 3, 4]
    kit.put(b"a")
    assert [r.watch_id for r in client.read()] == [5]


def test_a_compacted_watch_with_a_full_sink_is_told_later(kit: Kit) -> None:
    client = kit.client(room=2)
    client.watch(b"a")
    fill(kit, 6)
    kit.store.compact(6)
    client.read()
    client.watch(b"z")
    client.watch(b"z")  # full again
    kit.settle()
    assert [r.created for r in client.read()] == [True, True]
    kit.settle()
    (canceled,) = client.read()
    assert (canceled.watch_id, canceled.compact_revision) == (0, 6)


def test_a_synced_watcher_is_not_touched_by_compaction(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a")
    fill(kit, 3, b"b")
    kit.store.compact(4)
    kit.settle()
    kit.put(b"a")
    assert revisions(client) == [5]


# A store whose content was replaced


def replaced() -> tuple[Kit, FakeStore, Client]:
    """A hub at revision 4 with watchers of every state, over a store that jumps to revision 9."""
    kit = Kit(FakeStore())
    fill(kit, 3)
    client = kit.client()
    client.watch(b"a")  # synced
    client.watch(b"a", start_revision=8)  # ahead, then in the past
    client.watch(b"a", start_revision=12)  # still ahead
    client.watch(b"a", start_revision=2)  # behind
    store = cast(FakeStore, kit.store)
    for i in range(5):
        store.write((b"a", b"new%d" % i))
    return kit, store, client


def test_everybody_reads_what_a_snapshot_brought() -> None:
    kit, _, client = replaced()
    kit.hub.restore()
    assert kit.hub.rev == 9
    kit.settle()
    fill(kit, 3)
    got: dict[int, list[int]] = {}
    for response in client.read():
        revs = [e.kv.mod_revision for e in response.events]
        got.setdefault(response.watch_id, []).extend(revs)
    assert got == {
        0: list(range(5, 13)),
        1: list(range(8, 13)),
        2: [12],
        3: list(range(2, 13)),
    }


def test_a_snapshot_beyond_a_compaction_cancels_who_missed_something() -> None:
    kit, store, client = replaced()
    store.compact(7)
    kit.hub.restore()
    kit.settle()
    assert sorted(r.watch_id for r in client.read() if r.compact_revision == 7) == [0, 3]


def test_a_snapshot_without_news_leaves_all_as_it_was() -> None:
    kit = Kit(FakeStore())
    client = kit.client()
    client.watch(b"a")
    kit.hub.restore()
    assert kit.hub.slow_watcher_total == 0
    kit.put(b"a")
    assert revisions(client) == [2]


def test_a_snapshot_of_an_older_state_makes_watchers_wait() -> None:
    """It does not happen in a sound cluster; after a disaster, old revisions are not sent twice."""
    kit = Kit(FakeStore())
    fill(kit, 3)
    client = kit.client()
    client.watch(b"a")
    client.watch(b"a", start_revision=3)
    store = cast(FakeStore, kit.store)
    store.log, store.rev = [], Revision(1)
    kit.hub.restore()
    kit.settle()
    client.read()
    fill(kit, 5)
    kit.settle()
    got = sorted((r.watch_id, e.kv.mod_revision) for r in client.read() for e in r.events)
    assert got == [(0, 5), (0, 6), (1, 3), (1, 4), (1, 5), (1, 6)]
