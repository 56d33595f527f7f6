"""Concurrent clients that write, read, watch and hold leases until the server dies."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crash.history import Event, Grant, Op, Outcome, Pair, Read, Recorder, Watched
from support.rpc import (
    COMPACT,
    DEFRAGMENT,
    DELETE_RANGE,
    KEEP_ALIVE_PATH,
    LEASE_GRANT,
    LEASE_REVOKE,
    PUT,
    RANGE,
    TXN,
    WATCH_PATH,
    Client,
    Reply,
    Rpc,
)

from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb

JOIN_SECONDS = 30.0
CALL_SECONDS = 10.0
_LEASE_TTL = 3600

# Statuses after which the request may or may not have been carried out.
_OPEN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"}


def outcome_of(reply: Reply) -> Outcome:
    if reply.ok:
        return Outcome.ACKED
    # A put refused for want of space has been applied all the same.
    full = reply.code == "RESOURCE_EXHAUSTED"
    return Outcome.UNKNOWN if full or reply.code in _OPEN else Outcome.REFUSED


@dataclass(slots=True)
class Mind:
    """What a client remembers over the deaths of the server."""

    name: str
    rng: random.Random
    number: int = 0
    lease: int = 0

    def value(self, padding: int = 0) -> bytes:
        """A value that nobody writes again."""
        self.number += 1
        return b"%s:%d:%s" % (self.name.encode(), self.number, b"." * padding)

    def key(self) -> bytes:
        return b"%s/%02d" % (self.name.encode(), self.rng.randrange(20))


class Worker:
    """One client thread of one epoch; ends with ``stop`` or at the first unanswered request."""

    def __init__(self, epoch: Epoch, mind: Mind, action: Callable[[Worker], bool]) -> None:
        self.epoch = epoch
        self.mind = mind
        self.client = Client(epoch.endpoint)
        self._action = action
        self.thread = threading.Thread(target=self._loop, name=mind.name, daemon=True)

    def _loop(self) -> None:
        try:
            while not self.epoch.stop.is_set() and self._action(self):
                pass
        finally:
            self.client.close()

    def write(self, op: Op, rpc: Rpc, request: Any) -> bool:
        """Send one write, and record what became of it. False: the server is gone."""
        recorder = self.epoch.recorder
        recorder.ops.append(op)
        reply = self.client.raw(rpc.path, request.SerializeToString(), timeout=CALL_SECONDS)
        op.returned = recorder.tick()
        op.outcome = outcome_of(reply)
        if op.outcome is Outcome.ACKED:
            response = rpc.response.FromString(reply.body)
            changed = rpc is not DELETE_RANGE or response.deleted > 0
            op.revision = response.header.revision if changed else 0
            recorder.note_ack()
        return op.outcome is not Outcome.UNKNOWN

    def op(self, puts: dict[bytes, bytes], deletes: tuple[bytes, ...] = (), **more: int) -> Op:
        return Op(self.mind.name, puts, deletes, self.epoch.recorder.tick(), **more)


@dataclass(slots=True)
class Epoch:
    """Everything that runs between two deaths of the server."""

    endpoint: str
    recorder: Recorder
    base: int = 1  # the store's revision when the epoch begins
    stop: threading.Event = field(default_factory=threading.Event)
    workers: list[Worker] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)

    def start(self, minds: dict[str, Mind], watches: list[Watched]) -> None:
        for name, mind in minds.items():
            action = ACTIONS[name.rstrip("0123456789")]
            self.workers.append(Worker(self, mind, action))
        self.watchers = [Watcher(self.endpoint, watched) for watched in watches]
        for worker in self.workers:
            worker.thread.start()

    def join(self) -> None:
        """Wait for all clients, after the server's death or after ``stop``."""
        self.stop.set()
        self.recorder.end()
        for worker in self.workers:
            worker.thread.join(JOIN_SECONDS)
            assert not worker.thread.is_alive(), f"client {worker.mind.name} hangs"
        for watcher in self.watchers:
            watcher.close()


def put(worker: Worker) -> bool:
    mind = worker.mind
    op = worker.op({mind.key(): mind.value(mind.rng.choice([0, 0, 0, 300, 5000]))})
    ((key, value),) = op.puts.items()
    return worker.write(op, PUT, pb.PutRequest(key=key, value=value))


def put_or_delete(worker: Worker) -> bool:
    if worker.mind.rng.random() < 0.6:
        return put(worker)
    op = worker.op({}, (worker.mind.key(),))
    return worker.write(op, DELETE_RANGE, pb.DeleteRangeRequest(key=op.deletes[0]))


def txn(worker: Worker) -> bool:
    """Several puts and one deletion that belong together."""
    mind = worker.mind
    keys = sorted({mind.key() for _ in range(5)})
    gone = tuple(keys[:1]) if len(keys) > 2 else ()
    op = worker.op({key: mind.value() for key in keys[len(gone) :]}, gone)
    ops = [
        pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))
        for key, value in op.puts.items()
    ]
    ops += [pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key)) for key in gone]
    mind.rng.shuffle(ops)
    return worker.write(op, TXN, pb.TxnRequest(success=ops))


def lease(worker: Worker) -> bool:
    """Hold a lease with keys on it; now and then end it and take the next."""
    mind = worker.mind
    roll = mind.rng.random()
    if mind.lease == 0 or roll < 0.08:
        return _new_lease(worker)
    if roll < 0.15:
        return _keep_alive(worker)
    op = worker.op({mind.key(): mind.value()}, lease=mind.lease)
    ((key, value),) = op.puts.items()
    return worker.write(op, PUT, pb.PutRequest(key=key, value=value, lease=mind.lease))


def _new_lease(worker: Worker) -> bool:
    mind = worker.mind
    if mind.lease:
        old, mind.lease = mind.lease, 0
        op = worker.op({}, revokes=old)
        if not worker.write(op, LEASE_REVOKE, pb.LeaseRevokeRequest(ID=old)):
            return False
    grant = Grant(mind.rng.getrandbits(60) + 1, _LEASE_TTL)
    worker.epoch.recorder.grants.append(grant)
    request = pb.LeaseGrantRequest(ID=grant.lease, TTL=grant.ttl)
    reply = worker.client.raw(LEASE_GRANT.path, request.SerializeToString(), timeout=CALL_SECONDS)
    grant.outcome = outcome_of(reply)
    if reply.ok:
        mind.lease = grant.lease
    return reply.ok


def _keep_alive(worker: Worker) -> bool:
    answered = threading.Event()
    stream = worker.client.stream(KEEP_ALIVE_PATH)
    stream.start(lambda _: answered.set(), lambda _: answered.set())
    stream.send(pb.LeaseKeepAliveRequest(ID=worker.mind.lease).SerializeToString())
    alive = answered.wait(CALL_SECONDS) and stream.status is None
    stream.close()
    return alive


def read(worker: Worker) -> bool:
    mind, recorder = worker.mind, worker.epoch.recorder
    key = b"%s/%02d" % (mind.rng.choice(WRITERS).encode(), mind.rng.randrange(20))
    invoked = recorder.tick()
    request = pb.RangeRequest(key=key)
    reply = worker.client.raw(RANGE.path, request.SerializeToString(), timeout=CALL_SECONDS)
    if not reply.ok:
        return False
    response = pb.RangeResponse.FromString(reply.body)
    pair = pair_of(response.kvs[0]) if response.kvs else None
    recorder.reads.append(Read(key, invoked, recorder.tick(), response.header.revision, pair))
    return True


def compact(worker: Worker) -> bool:
    """Compact some of what was there before this epoch (all watches have seen it), and rest."""
    epoch, recorder = worker.epoch, worker.epoch.recorder
    if not recorder.wait_acks(recorder.acked + 100, 0.5):
        return not epoch.stop.is_set()
    if recorder.compact_asked >= epoch.base:
        return not epoch.stop.is_set()
    revision = worker.mind.rng.randint(recorder.compact_asked + 1, epoch.base)
    recorder.compact_asked = revision
    request = pb.CompactionRequest(revision=revision, physical=worker.mind.rng.random() < 0.5)
    reply = worker.client.raw(COMPACT.path, request.SerializeToString(), timeout=CALL_SECONDS)
    if reply.ok:
        recorder.compacted = revision
    return reply.ok


def defragment(worker: Worker) -> bool:
    reply = worker.client.raw(DEFRAGMENT.path, b"", timeout=CALL_SECONDS)
    return reply.ok and worker.epoch.recorder.wait_acks(worker.epoch.recorder.acked + 200, 1.0)


ACTIONS: dict[str, Callable[[Worker], bool]] = {
    "put": put,
    "del": put_or_delete,
    "txn": txn,
    "lease": lease,
    "read": read,
    "compact": compact,
    "defrag": defragment,
}
WRITERS = ["put1", "put2", "put3", "del1", "del2", "txn1", "txn2", "lease1", "lease2"]


def make_minds(seed: int, *, compacting: bool = True) -> dict[str, Mind]:
    names = [*WRITERS, "read1", "read2", *(["compact1"] if compacting else [])]
    return {name: Mind(name, random.Random(f"{seed} {name}")) for name in names}


def make_watches() -> list[Watched]:
    """Over everything, over one client's keys, over one key."""
    return [
        Watched("all", b"\0", b"\xff" * 4, 1),
        Watched("txn1", b"txn1/", b"txn10", 1),
        Watched("one key", b"del1/07", b"del1/07\0", 1),
    ]


class Watcher:
    """One stream of a watch that goes on where the last stream ended."""

    def __init__(self, endpoint: str, watched: Watched) -> None:
        self.watched = watched
        self.changed = threading.Condition()
        self.ended: Reply | None = None
        self.refused = ""
        self._client = Client(endpoint)
        self._stream = self._client.stream(WATCH_PATH)
        self._stream.start(self._on_message, self._on_end)
        create = pb.WatchCreateRequest(
            key=watched.first, range_end=watched.end, start_revision=watched.next_revision
        )
        self._stream.send(pb.WatchRequest(create_request=create).SerializeToString())

    def _on_message(self, message: bytes) -> None:
        response = pb.WatchResponse.FromString(message)
        with self.changed:
            if response.canceled:
                self.refused = f"cancelled, compact revision {response.compact_revision}"
            for event in response.events:
                self.watched.events.append(event_of(event))
                self.watched.next_revision = event.kv.mod_revision + 1
            self.changed.notify_all()

    def _on_end(self, status: Reply) -> None:
        with self.changed:
            self.ended = status
            self.changed.notify_all()

    def wait_count(self, count: int, timeout: float) -> None:
        """Wait until the watch has that many events; what is wrong is the checks' business."""
        with self.changed:
            self.changed.wait_for(
                lambda: len(self.watched.events) >= count or self.ended is not None, timeout
            )

    def wait_revision(self, revision: int, timeout: float) -> None:
        """Wait for an event of ``revision`` or later."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.watched.next_revision > revision or self.ended is not None, timeout
            )

    def close(self) -> None:
        self._stream.close()
        self._client.close()


def event_of(event: Any) -> Event:
    kv = event.kv
    if event.type == mvccpb.Event.DELETE:
        return Event(kv.mod_revision, kv.key, None)
    return Event(kv.mod_revision, kv.key, kv.value, kv.create_revision, kv.version, kv.lease)


def pair_of(kv: Any) -> Pair:
    return Pair(kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
