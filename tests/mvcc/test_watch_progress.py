"""Progress notices of quiet watches. Time is what the test says it is."""

from __future__ import annotations

import pytest
from mvcc.watch_kit import Client, FakeStore, Kit

from kvorum.mvcc.watch import WatchLimits

INTERVAL = 600.0
LONGEST = INTERVAL * 1.1


@pytest.fixture
def kit() -> Kit:
    return Kit(FakeStore())


def notices(client: Client) -> list[tuple[int, int]]:
    """(watch id, revision) of responses without anything else in them."""
    responses = client.read()
    assert not any(r.created or r.canceled for r in responses)
    return [(r.watch_id, r.header.revision) for r in responses if not r.events]


def test_a_quiet_watch_is_told_the_revision_every_interval(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", progress_notify=True)
    client.opened(b"a")
    kit.put(b"x")
    kit.hub.tick(INTERVAL - 1)
    assert notices(client) == []
    kit.hub.tick(LONGEST)
    kit.put(b"x")
    kit.hub.tick(LONGEST + 1)
    assert notices(client) == [(0, 2)]
    kit.hub.tick(2 * LONGEST)
    assert notices(client) == [(0, 3)]


def test_the_first_notice_is_an_interval_after_the_creation(kit: Kit) -> None:
    client = kit.client()
    kit.hub.tick(5000.0)
    client.opened(b"a", progress_notify=True)
    kit.hub.tick(5000.0 + INTERVAL - 1)
    assert notices(client) == []
    kit.hub.tick(5000.0 + LONGEST)
    assert notices(client) == [(0, 1)]


@pytest.mark.parametrize("how", ["present", "history", "large"])
def test_events_stand_in_for_a_notice(how: str) -> None:
    limits = WatchLimits(response_bytes=10) if how == "large" else None
    kit = Kit(FakeStore(), limits)
    client = kit.client()
    if how == "history":
        kit.put(b"a")
        client.opened(b"a", progress_notify=True, start_revision=2)
        kit.settle()
    else:
        client.opened(b"a", progress_notify=True)
        kit.batch([(b"a", b"1")], [(b"a", b"2")])
    kit.hub.tick(LONGEST)
    assert notices(client) == []
    kit.hub.tick(2 * LONGEST)
    assert notices(client) == [(0, kit.hub.rev)]


def test_events_that_were_filtered_out_do_not(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", progress_notify=True, filters=[0])
    kit.put(b"a")
    kit.hub.tick(LONGEST)
    assert notices(client) == [(0, 2)]


def test_a_neighbour_on_the_same_key_has_notices_of_its_own(kit: Kit) -> None:
    old, young = kit.client(), kit.client()
    old.opened(b"a", progress_notify=True)
    kit.put(b"a")
    young.opened(b"a", progress_notify=True)
    old.read()
    kit.hub.tick(LONGEST)
    assert notices(old) == []
    assert notices(young) == [(0, 2)]


def test_no_notice_before_the_start_revision_or_while_behind(kit: Kit) -> None:
    client = kit.client(room=5)
    client.watch(b"a", start_revision=10, progress_notify=True)
    kit.put(b"b")
    client.watch(b"b", start_revision=2, progress_notify=True)
    kit.hub.tick(LONGEST)
    assert [r.created for r in client.read()] == [True, True]
    client.watch(b"c", progress_notify=True)
    client.sink.room = 1
    kit.put(b"c")
    kit.hub.tick(2 * LONGEST)
    assert [r.created for r in client.read()] == [True]


def test_a_full_sink_gets_no_notice(kit: Kit) -> None:
    client = kit.client(room=1)
    client.watch(b"a", progress_notify=True)
    kit.hub.tick(LONGEST)
    assert len(client.sink.sent) == 1
    client.read()
    kit.hub.tick(2 * LONGEST)
    assert notices(client) == [(0, 1)]


def test_ended_watches_get_none(kit: Kit) -> None:
    client, closed = kit.client(), kit.client()
    client.opened(b"a", progress_notify=True)
    client.cancel(0)
    for _ in range(3):
        kit.put(b"a")
    kit.store.compact(4)
    client.watch(b"a", start_revision=2, progress_notify=True)
    kit.settle()
    client.cancel(1)
    client.read()
    closed.opened(b"a", progress_notify=True)
    closed.stream.close()
    kit.hub.tick(LONGEST)
    assert notices(client) == []
    assert closed.sink.sent == []
    assert len(kit.hub._progress) == 0


def test_notices_come_at_the_interval_and_up_to_a_tenth_later(kit: Kit) -> None:
    client = kit.client()
    for _ in range(320):
        client.watch(b"a", progress_notify=True)
    client.read()
    counts = []
    for step in range(11):
        kit.hub.tick(INTERVAL + step * INTERVAL / 100)
        counts.append(len(notices(client)))
    assert sum(counts) == 320
    assert max(counts) < 100, f"spread over the tenth: {counts}"


def test_notices_of_one_tick_are_bounded() -> None:
    kit = Kit(FakeStore(), WatchLimits(progress_notices=10))
    client = kit.client()
    for _ in range(100):
        client.watch(b"a", progress_notify=True)
    client.read()
    seen: list[int] = []
    for _ in range(10):
        kit.hub.tick(LONGEST)
        found = notices(client)
        assert len(found) == 10
        seen += [id for id, _ in found]
    assert sorted(seen) == list(range(100)), "each once"
