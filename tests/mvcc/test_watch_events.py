"""What synced watchers are sent for a batch of changes, on the fake store and on the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mvcc.watch_kit import FakeStore, Kit, MakeKit, RealStore, brief, told

from kvorum import failpoint
from kvorum.mvcc.watch import WatchLimits
from kvorum.pb import etcdserverpb as pb

NOPUT = pb.WatchCreateRequest.NOPUT
NODELETE = pb.WatchCreateRequest.NODELETE


@pytest.fixture(params=["fake", "real"])
def make_kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeKit]:
    store = FakeStore() if request.param == "fake" else RealStore(tmp_path)
    yield lambda limits=None: Kit(store, limits)
    store.close()


@pytest.fixture
def kit(make_kit: MakeKit) -> Kit:
    return make_kit()


def test_a_batch_is_one_response_with_the_last_revision(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", b"c")
    kit.batch(
        [(b"a", b"1"), (b"b", b"1")], [(b"x", b"1")], [(b"a", b"2")], [(b"a", None)], [(b"y", b"")]
    )
    (response,) = client.read()
    assert brief(response) == ["put a=1@2", "put b=1@2", "put a=2@4", "del a@5"]
    assert response.header.revision == 6
    assert (response.watch_id, response.created, response.canceled) == (0, False, False)


def test_the_pair_of_an_event_is_complete(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a")
    kit.put(b"a", b"1")
    kit.put(b"a", b"2")
    (_, response) = client.read()
    kv = response.events[0].kv
    assert (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) == (
        b"a",
        b"2",
        2,
        3,
        2,
    )


def test_nothing_is_sent_for_other_keys_or_for_nothing(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a")
    client.opened(b"b", b"c")
    kit.put(b"c")
    kit.put(b"aa")
    kit.hub.notify([])
    assert client.read() == []


def test_changes_that_were_notified_already_are_refused(kit: Kit) -> None:
    changes = kit.store.write((b"a", b"1"))
    kit.hub.notify(changes)
    with pytest.raises(AssertionError, match="come after 2"):
        kit.hub.notify(changes)


def test_every_watch_of_a_key_gets_its_own_response(kit: Kit) -> None:
    client, other = kit.client(), kit.client()
    for key, end in (
        (b"a", b""),
        (b"a", b""),
        (b"a", b"b"),
        (b"", b"\0"),
        (b"0", b"z"),
        (b"b", b""),
    ):
        client.opened(key, end)
    other.opened(b"a")
    kit.put(b"a")
    assert sorted(r.watch_id for r in client.read()) == [0, 1, 2, 3, 4]
    assert [r.watch_id for r in other.read()] == [0]


FILTERED = {
    (): ["put a=1@2", "del a@3"],
    (NOPUT,): ["del a@3"],
    (NODELETE,): ["put a=1@2"],
    (NOPUT, NODELETE): [],
}


@pytest.mark.parametrize("filters", FILTERED)
@pytest.mark.parametrize("batched", [True, False])
def test_filters(kit: Kit, filters: tuple[int, ...], batched: bool) -> None:
    client = kit.client()
    client.opened(b"a", filters=filters)
    if batched:
        kit.batch([(b"a", b"1")], [(b"a", None)])
    else:
        kit.put(b"a", b"1")
        kit.delete(b"a")
    responses = client.read()
    assert told(responses) == FILTERED[filters]
    assert all(r.events for r in responses), "a response without events is a progress notice"


def test_previous_pairs(kit: Kit) -> None:
    client, plain = kit.client(), kit.client()
    client.opened(b"a", prev_kv=True)
    plain.opened(b"a")
    kit.put(b"a", b"1")
    kit.batch([(b"a", b"2")], [(b"a", b"3")], [(b"a", None)], [(b"a", b"4")])
    assert told(client.read()) == [
        "put a=1@2",
        "put a=2@3 (1@2)",
        "put a=3@4 (2@3)",
        "del a@5 (3@4)",
        "put a=4@6",
    ]
    assert not any("(" in line for line in told(plain.read()))


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_created_again_within_a_transaction_has_no_previous_pair(
    kit: Kit, behind: bool
) -> None:
    client = kit.client()
    if not behind:
        client.opened(b"a", prev_kv=True)
    kit.put(b"a", b"1")
    kit.write((b"a", None), (b"a", b"2"))
    if behind:
        client.opened(b"a", start_revision=2, prev_kv=True)
        kit.settle()
    assert told(client.read()) == ["put a=1@2", "del a@3 (1@2)", "put a=2@3"]


def test_previous_pair_that_was_compacted_is_left_out(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a", prev_kv=True)
    kit.put(b"a", b"1")
    changes = kit.store.write((b"a", b"2")) + kit.store.write((b"a", b"3"))
    kit.store.compact(4)
    kit.hub.notify(changes)
    assert told(client.read()) == ["put a=1@2", "put a=2@3", "put a=3@4"]


def test_watchers_of_one_place_and_id_share_the_very_bytes() -> None:
    kit = Kit(FakeStore())
    clients = [kit.client() for _ in range(3)]
    for client in clients:
        client.watch(b"a")
    clients[0].watch(b"a")
    kit.put(b"a")
    first, second, third = (client.sink.sent[-1] for client in clients[::-1])
    assert first is second
    assert third != first, "another watch_id"
    assert clients[0].sink.sent[-2] is first


# Sizes


def sized(kit: Kit, sizes: list[int]) -> None:
    """One revision per size, with a value of that many bytes each, as one batch."""
    kit.batch(*([(b"k%d" % i, b"x" * size)] for i, size in enumerate(sizes)))


def test_a_large_batch_is_cut_between_revisions(make_kit: MakeKit) -> None:
    kit = make_kit(WatchLimits(response_bytes=1000))
    client = kit.client()
    client.opened(b"k", b"l")
    sized(kit, [300, 300, 300, 300, 2500, 10, 10])
    responses = client.read()
    assert [[e.kv.mod_revision for e in r.events] for r in responses] == [
        [2, 3, 4],
        [5],
        [6],
        [7, 8],
    ]
    assert [r.header.revision for r in responses] == [4, 5, 6, 8], "resuming from a header is safe"
    assert not any(r.fragment for r in responses)


def test_events_of_one_revision_stay_together_however_large(make_kit: MakeKit) -> None:
    kit = make_kit(WatchLimits(response_bytes=1000))
    client = kit.client()
    client.opened(b"", b"\0")
    large = [(b"k%d" % i, b"x" * 400) for i in range(10)]
    kit.batch([(b"a", b"1")], large, [(b"b", b"1")])
    assert [len(r.events) for r in client.read()] == [1, 10, 1]


def test_fragments_cut_one_revision_for_those_who_asked(make_kit: MakeKit) -> None:
    kit = make_kit(WatchLimits(response_bytes=1000, fragment_bytes=1000))
    asked, whole = kit.client(), kit.client()
    asked.opened(b"k", b"l", fragment=True)
    whole.opened(b"k", b"l")
    kit.write(*((b"k%d" % i, b"x" * 400) for i in range(5)))
    assert [len(r.events) for r in whole.read()] == [5]
    responses = asked.read()
    assert [(len(r.events), r.fragment) for r in responses] == [(2, True), (2, True), (1, False)]
    kit.put(b"k0")
    (small,) = asked.read()
    assert not small.fragment


def test_the_cut_respects_what_filters_leave(make_kit: MakeKit) -> None:
    kit = make_kit(WatchLimits(response_bytes=1000))
    client = kit.client()
    client.opened(b"k", b"l", filters=[NOPUT])
    sized(kit, [600, 600])
    kit.batch([(b"k0", None)], [(b"k9", b"x" * 2000)], [(b"k1", None)])
    assert [brief(r) for r in client.read()] == [["del k0@4", "del k1@6"]]


# A sink that fills up


def test_a_full_sink_gets_the_rest_later_in_order(make_kit: MakeKit) -> None:
    kit = make_kit(WatchLimits(response_bytes=1000))
    client = kit.client(room=3)
    client.watch(b"k", b"l")
    sized(kit, [900, 900, 900])
    kit.put(b"k7", b"late")
    first = client.read()
    assert [r.header.revision for r in first] == [1, 2, 3]
    assert kit.hub.slow_watcher_total == 1
    kit.settle()
    assert [line.rsplit("@")[1] for line in told(client.read())] == ["4", "5"]
    assert kit.hub.slow_watcher_total == 0
    kit.put(b"k8")
    assert told(client.read()) == ["put k8=v@6"]


def test_a_full_sink_does_not_hold_up_others(kit: Kit) -> None:
    slow, quick = kit.client(room=2), kit.client()
    slow.watch(b"a")
    quick.watch(b"a")
    for i in range(4):
        kit.put(b"a", b"%d" % i)
    assert told(quick.read()) == [f"put a={i}@{i + 2}" for i in range(4)]
    assert told(slow.read()) == ["put a=0@2"]
    kit.settle()
    assert told(slow.read()) == [f"put a={i}@{i + 2}" for i in range(1, 4)]


def test_fragments_meet_a_full_sink_between_responses(make_kit: MakeKit) -> None:
    kit = make_kit(WatchLimits(response_bytes=1000, fragment_bytes=1000))
    client = kit.client(room=2)
    client.watch(b"k", b"l", fragment=True)
    many = [(b"k%d" % i, b"x" * 400) for i in range(4)]
    kit.batch(many, many)
    responses = client.read()
    kit.settle()
    responses += client.read()
    marks = [(r.events[0].kv.mod_revision, r.fragment) for r in responses[1:]]
    assert marks == [(2, True), (2, False), (3, True), (3, False)]


def test_the_failpoint_stands_before_every_response(kit: Kit) -> None:
    client = kit.client()
    client.opened(b"a")
    client.opened(b"b", start_revision=2)
    failpoint.enable("beforeSendWatchResponse", "print")
    try:
        kit.batch([(b"a", b"1")], [(b"b", b"1")])
        kit.put(b"c")
        late = kit.client()
        late.opened(b"a", start_revision=2)
        kit.settle()
        hits = int(failpoint.status("beforeSendWatchResponse")[1])
    finally:
        failpoint.disable_all()
    assert hits == 3
    assert told(client.read()) == ["put a=1@2", "put b=1@3"]
