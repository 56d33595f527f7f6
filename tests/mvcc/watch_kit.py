"""A hub with a store and clients, for tests: everything happens when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from kvorum.backend import Backend
from kvorum.mvcc.kv import encode, encode_tombstone
from kvorum.mvcc.revision import main_of, rev_key, tombstone_key
from kvorum.mvcc.store import Store
from kvorum.mvcc.watch import Change, Check, WatchHub, WatchLimits, WatchStore, WatchStream
from kvorum.mvcc.watch_source import StoreHistory
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.pb.wire import delimited
from kvorum.types import LeaseID, Revision, RevKey

CLUSTER, MEMBER, TERM = 0xC0FFEE, 0xFEED, 7

Op = tuple[bytes, bytes | None]
"""A key and its new value; None deletes it."""


def header(rev: int) -> bytes:
    message = pb.ResponseHeader(cluster_id=CLUSTER, member_id=MEMBER, revision=rev, raft_term=TERM)
    return delimited(1, message.SerializeToString())


class KitStore(Protocol):
    """What the kit asks of a store besides history."""

    source: WatchStore

    def write(self, *ops: Op) -> list[Change]: ...
    def compact(self, rev: int) -> None: ...
    def close(self) -> None: ...


class FakeStore:
    """History in a list. It is its own source."""

    def __init__(self) -> None:
        self.source: WatchStore = self
        self.rev = Revision(1)
        self.compact_rev = Revision(-1)
        self.log: list[Change] = []
        self.reads = 0
        self._live: dict[bytes, tuple[int, int, RevKey]] = {}

    def write(self, *ops: Op) -> list[Change]:
        main = self.rev + 1
        changes = []
        for key, value in ops:
            create, version, before = self._live.get(key, (main, 0, None))
            if value is not None:
                rev = rev_key(main, len(changes))
                self._live[key] = create, version + 1, rev
                record = encode(key, create, main, version + 1, value, 0)
                changes.append((rev, key, record, before))
            elif before is not None:
                del self._live[key]
                rev = tombstone_key(main, len(changes))
                changes.append((rev, key, encode_tombstone(key), before))
        if changes:
            self.rev = Revision(main)
            self.log += changes
        return changes

    def compact(self, rev: int) -> None:
        """Keep of each key what is newer, and the newest pair that is not."""
        self.compact_rev = Revision(rev)
        newest = {c[1]: c for c in self.log if main_of(c[0]) <= rev}
        self.log = [
            c
            for c in self.log
            if main_of(c[0]) > rev
            or (newest[c[1]] is c and (len(c[0]) == 17 or main_of(c[0]) == rev))
        ]

    def history(self, first: Revision, last: Revision) -> Iterator[Change]:
        self.reads += 1
        for change in self.log:
            if first <= main_of(change[0]) <= last:
                yield (*change[:3], None)

    def kv_at(self, key: bytes, rev: Revision) -> bytes | None:
        if rev < self.compact_rev:
            return None
        found = [c for c in self.log if c[1] == key and main_of(c[0]) <= rev]
        return found[-1][2] if found and len(found[-1][0]) == 17 else None

    def kv_by_rev(self, rev_key: RevKey) -> bytes | None:
        return next((c[2] for c in self.log if c[0] == rev_key), None)

    def close(self) -> None:
        pass


class RealStore:
    """The store of the server, on a backend that commits nothing until asked."""

    def __init__(self, folder: Path) -> None:
        self.backend = Backend(folder / "watch.mdb")
        self.store = Store(self.backend)
        self.source: WatchStore = StoreHistory(self.store)

    def write(self, *ops: Op) -> list[Change]:
        txn = self.store.write()
        for key, value in ops:
            if value is None:
                txn.delete_range(key, b"")
            else:
                txn.put(key, value, LeaseID(0))
        txn.end()
        changes = list(self.store.changes)
        self.store.changes.clear()
        return changes

    def compact(self, rev: int) -> None:
        job = self.store.compact(rev)
        while not job.index_step():
            pass
        while not job.delete_step():
            pass

    def close(self) -> None:
        self.backend.close()


class Sink:
    """Takes ``room`` messages and then is full, until `Client.read`. With ``last`` messages sent,
    the connection breaks in the middle of the sending, and all that use it are closed."""

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.sent: list[bytes] = []
        self.last: int | None = None
        self.closes: list[WatchStream] = []

    def send(self, message: bytes) -> None:
        self.sent.append(message)
        if self.last is not None and len(self.sent) >= self.last:
            for stream in self.closes:
                stream.close()

    def writable(self) -> bool:
        return self.room is None or len(self.sent) < self.room


class Client:
    """One Watch call, from the client's end."""

    def __init__(self, hub: WatchHub, room: int | None, check: Check | None) -> None:
        self.sink = Sink(room)
        self.stream: WatchStream = hub.stream(self.sink, check)

    def watch(self, key: bytes, end: bytes = b"", **fields: Any) -> None:
        request = pb.WatchCreateRequest(key=key, range_end=end, **fields)
        self.stream.handle(pb.WatchRequest(create_request=request))

    def cancel(self, id: int) -> None:
        self.stream.handle(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=id)))

    def ask_progress(self) -> None:
        self.stream.handle(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    def read(self) -> list[pb.WatchResponse]:
        """Everything that was sent; the sink has room again."""
        responses = [pb.WatchResponse.FromString(message) for message in self.sink.sent]
        full = not self.sink.writable()
        self.sink.sent.clear()
        if full:
            self.stream.on_writable()
        return responses

    def opened(self, *args: bytes, **fields: Any) -> pb.WatchResponse:
        """Create a watch and read the reply."""
        self.watch(*args, **fields)
        return self.read()[-1]


class Kit:
    def __init__(self, store: KitStore, limits: WatchLimits | None = None) -> None:
        self.store = store
        self.woken = 0
        self.hub = WatchHub(store.source, header, limits=limits, wake=self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def client(self, room: int | None = None, check: Check | None = None) -> Client:
        return Client(self.hub, room, check)

    def put(self, key: bytes, value: bytes = b"v") -> None:
        self.write((key, value))

    def delete(self, key: bytes) -> None:
        self.write((key, None))

    def write(self, *ops: Op) -> None:
        """One transaction, notified by itself."""
        self.hub.notify(self.store.write(*ops))

    def batch(self, *txns: tuple[Op, ...] | list[Op]) -> None:
        """Several transactions, notified together."""
        changes = [change for ops in txns for change in self.store.write(*ops)]
        self.hub.notify(changes)

    def settle(self, most: int = 1000) -> int:
        """Catch up as far as possible now; the number of steps."""
        for step in range(most):
            if not self.hub.sync_step():
                return step + 1
        raise AssertionError(f"not settled after {most} steps")


def brief(response: pb.WatchResponse) -> list[str]:
    """Events as text: ``put a=1@3`` or ``del a@4``, and what was before in brackets."""
    lines = []
    for event in response.events:
        kv = event.kv
        if event.type == mvccpb.Event.PUT:
            line = f"put {kv.key.decode()}={kv.value.decode()}@{kv.mod_revision}"
        else:
            line = f"del {kv.key.decode()}@{kv.mod_revision}"
        if event.HasField("prev_kv"):
            line += f" ({event.prev_kv.value.decode()}@{event.prev_kv.mod_revision})"
        lines.append(line)
    return lines


def told(responses: list[pb.WatchResponse]) -> list[str]:
    """All events of all responses."""
    return [line for response in responses for line in brief(response)]


MakeKit = Callable[..., Kit]
"""Makes a kit with given limits; all of one test share the store."""
