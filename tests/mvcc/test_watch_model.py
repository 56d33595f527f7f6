"""Random clients, sinks and compactions against a model that knows the whole history.

Every client must be told exactly the events of the history that its watch asked for, from its
first revision on: in order, once, each revision in one response (or one row of fragments). A watch
that is broken off is resumed behind its last revision without a gap.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mvcc.watch_kit import Client, FakeStore, Kit, Op, RealStore

from kvorum.mvcc.revision import main_of
from kvorum.mvcc.watch import Change, WatchLimits
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb

KEYS = [b"a", b"b", b"ba", b"c", b"d/1", b"d/2", b"e"]
SPANS = [(b"a", b""), (b"b", b""), (b"b", b"c"), (b"d/", b"d0"), (b"c", b"\0"), (b"", b"\0")]
LIMITS = WatchLimits(
    response_bytes=400,
    fragment_bytes=300,
    slice_changes=5,
    slice_bytes=2000,
    slice_watchers=4,
    unblock_watchers=2,
)

Told = tuple[int, bytes, bytes | None]
"""Revision, key, value (None: deleted)."""


@dataclass(slots=True)
class Expectation:
    """What one watch asked for, and what it was told so far."""

    span: tuple[bytes, bytes]
    start: int
    filters: list[int]
    prev_kv: bool
    fragment: bool
    told: list[Told] = field(default_factory=list)
    last_rev: int = 0
    promised: int = 0
    open_fragment: bool = False
    live: bool = False  # created, as far as the client has read, and not compacted

    def wants(self, event: Told) -> bool:
        rev, key, value = event
        low, end = self.span[0] or b"\0", self.span[1]
        inside = key == low if not end else low <= key and (end == b"\0" or key < end)
        return rev >= self.start and inside and (0 if value is not None else 1) not in self.filters


class Model:
    """The history, one client with some watches, and the checks on what it is told."""

    def __init__(self, kit: Kit, rng: random.Random) -> None:
        self.kit = kit
        self.rng = rng
        self.history: list[Told] = []
        self.before: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        self.live: dict[bytes, tuple[int, bytes]] = {}
        self.unnotified: list[Change] = []
        self.clients = [self._client() for _ in range(4)]
        self.resumed = 0

    def _client(self) -> tuple[Client, dict[int, Expectation]]:
        return self.kit.client(room=self.rng.choice([None, 2, 3, 8])), {}

    # Steps

    def write(self) -> None:
        ops: dict[bytes, bytes | None] = {}
        for key in self.rng.sample(KEYS, self.rng.choice([1, 1, 1, 2, 5])):
            value = self.rng.randbytes(self.rng.choice([0, 3, 30, 150])).hex().encode()
            ops[key] = None if self.rng.random() < 0.3 else value
        self._record(list(ops.items()))
        if self.rng.random() < 0.6:
            self.notify()

    def _record(self, ops: list[Op]) -> None:
        changes = self.kit.store.write(*ops)
        values = dict(ops)
        for change in changes:
            rev, key = main_of(change[0]), change[1]
            value = values[key]
            self.history.append((rev, key, value))
            if key in self.live:
                self.before[rev, key] = self.live.pop(key)
            if value is not None:
                self.live[key] = rev, value
        self.unnotified += changes

    def notify(self) -> None:
        self.kit.hub.notify(self.unnotified)
        self.unnotified = []

    def watch(self) -> None:
        rev = self.kit.store.source.rev
        self._open(
            Expectation(
                span=self.rng.choice(SPANS),
                start=self.rng.choice([0, 0, rev, rev + 1, rev + 3, self.rng.randint(1, rev)]),
                filters=self.rng.choice([[], [], [0], [1]]),
                prev_kv=self.rng.random() < 0.3,
                fragment=self.rng.random() < 0.3,
            )
        )

    def _open(self, wish: Expectation) -> None:
        client, watches = self.rng.choice(self.clients)
        sent = len(client.sink.sent)
        client.watch(
            *wish.span,
            start_revision=wish.start,
            filters=wish.filters,
            prev_kv=wish.prev_kv,
            fragment=wish.fragment,
            progress_notify=self.rng.random() < 0.5,
        )
        created = pb.WatchResponse.FromString(client.sink.sent[sent])
        assert created.created
        assert not created.canceled
        wish.start = wish.start or created.header.revision + 1
        watches[created.watch_id] = wish

    def cancel(self) -> None:
        client, watches = self.rng.choice(self.clients)
        if watches:
            client.cancel(self.rng.choice(sorted(watches)))

    def hang_up(self) -> None:
        """A call breaks off; the client resumes its watches behind what it has read of each."""
        i = self.rng.randrange(len(self.clients))
        client, watches = self.clients[i]
        client.stream.close()
        self.clients[i] = self._client()
        for old in watches.values():
            if not old.live:
                continue
            if old.open_fragment:  # the revision was not complete: it is asked for again
                old.told = [e for e in old.told if e[0] != old.last_rev]
                old.last_rev -= 1
            start = max(old.start, old.last_rev + 1, old.promised + 1)
            self.check(old, start - 1)
            self._open(Expectation(old.span, start, old.filters, old.prev_kv, old.fragment))
            self.resumed += 1

    def compact(self) -> None:
        source = self.kit.store.source
        low = max(source.compact_rev + 1, 1)
        if low <= self.kit.hub.rev and self.rng.random() < 0.3:
            self.kit.store.compact(self.rng.randint(low, self.kit.hub.rev))

    def read(self) -> None:
        client, watches = self.rng.choice(self.clients)
        for response in client.read():
            self._take(watches, response)

    def progress(self) -> None:
        self.rng.choice(self.clients)[0].ask_progress()

    def tick(self) -> None:
        self.kit.hub.tick(self.kit.hub._now + self.rng.choice([10.0, 700.0]))

    def sync(self) -> None:
        self.kit.hub.sync_step()

    # Checks

    def _take(self, watches: dict[int, Expectation], response: pb.WatchResponse) -> None:
        id, rev = response.watch_id, response.header.revision
        if response.created:
            watches[id].live = True
        elif response.compact_revision:
            watches[id].live = False
            assert watches[id].start < response.compact_revision
            assert watches[id].last_rev < response.compact_revision
        elif response.canceled:
            del watches[id]
        elif response.events:
            self._events(watches[id], response)
        else:
            for watch in watches.values() if id == -1 else [watches[id]]:
                if watch.live:
                    watch.promised = max(watch.promised, rev)
                    self.check(watch, rev)

    def _events(self, watch: Expectation, response: pb.WatchResponse) -> None:
        first, last = (response.events[i].kv.mod_revision for i in (0, -1))
        if watch.open_fragment:
            assert first >= watch.last_rev
        else:
            assert first > watch.last_rev, "a revision in two responses"
        assert first > watch.promised, "an event from before a progress notice"
        assert last <= response.header.revision
        for event in response.events:
            self._event(watch, event)
        watch.last_rev = last
        watch.open_fragment = response.fragment
        if not response.fragment:
            self.check(watch, response.header.revision)
            watch.promised = response.header.revision

    def _event(self, watch: Expectation, event: mvccpb.Event) -> None:
        kv, deleted = event.kv, event.type == mvccpb.Event.DELETE
        watch.told.append((kv.mod_revision, kv.key, None if deleted else kv.value))
        if event.HasField("prev_kv"):
            assert watch.prev_kv
            prev = event.prev_kv.mod_revision, event.prev_kv.value
            assert prev == self.before[kv.mod_revision, kv.key]
        elif watch.prev_kv and (kv.mod_revision, kv.key) in self.before:
            assert kv.mod_revision - 1 <= self.kit.store.source.compact_rev

    def check(self, watch: Expectation, rev: int) -> None:
        """The watch was told everything it asked for, up to ``rev``."""
        assert watch.told == [e for e in self.history if e[0] <= rev and watch.wants(e)]

    def finish(self) -> None:
        """Everybody reads on, and gets everything."""
        if self.unnotified:
            self.notify()
        for _ in range(500):
            self.kit.settle()
            for client, watches in self.clients:
                for response in client.read():
                    self._take(watches, response)
            if not self.kit.hub.slow_watcher_total:
                break
        else:
            raise AssertionError("somebody never caught up")
        for _client, watches in self.clients:
            for watch in watches.values():
                if watch.live:
                    self.check(watch, self.kit.hub.rev)


STEPS = {
    Model.write: 40,
    Model.watch: 8,
    Model.cancel: 3,
    Model.hang_up: 1,
    Model.compact: 2,
    Model.read: 20,
    Model.progress: 4,
    Model.tick: 3,
    Model.sync: 25,
}


@pytest.fixture(params=["fake", "real"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeStore | RealStore]:
    store = FakeStore() if request.param == "fake" else RealStore(tmp_path)
    yield store
    store.close()


@pytest.mark.parametrize("seed", range(12))
def test_watches_keep_their_promises(store: FakeStore | RealStore, seed: int) -> None:
    rng = random.Random(seed)
    model = Model(Kit(store, LIMITS), rng)
    steps = list(STEPS)
    for step in rng.choices(steps, weights=[STEPS[s] for s in steps], k=600):
        step(model)
    model.finish()
    assert len(model.history) > 100
    assert model.resumed > 0
