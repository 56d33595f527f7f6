"""A seeded source of requests that uses what the reference answered to aim the next ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from differential import bad_input, kv_requests
from differential.picture import OpenWatch, Picture
from differential.steps import Kind, Step
from support.rpc import (
    COMPACT,
    DELETE_RANGE,
    HASH_KV,
    KEEP_ALIVE_PATH,
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TTL,
    PUT,
    RANGE,
    TXN,
    WATCH_PATH,
    Reply,
)

from kvorum.pb import etcdserverpb as pb

STREAMS = 4
MAX_WATCHES = 40
_COMPACT_EVERY = 400


class Generator:
    """Steps come in small lists; ``observe`` feeds the reference's answers back in between.

    The same seed against the same release gives the same steps.
    """

    def __init__(self, seed: int) -> None:
        self.at = Picture(random.Random(seed))
        self._until_compaction = _COMPACT_EVERY
        self._until_big_value = 900

    def take(self, count: int) -> list[Step]:
        """About ``count`` steps. A compaction begins a list: it must know of every watch."""
        self._until_compaction -= count
        steps: list[Step] = []
        if self._until_compaction <= 0:
            self._until_compaction = self.at.rng.randint(1, 2 * _COMPACT_EVERY)
            steps = self._compaction()
        while len(steps) < count:
            steps += self._next()
        return steps

    def _next(self) -> list[Step]:
        self._until_big_value -= 1
        if self._until_big_value <= 0:
            self._until_big_value = 3000
            return self._fragments()
        weights = [weight for weight, _ in self._MIX]
        makers = [maker for _, maker in self._MIX]
        return self.at.rng.choices(makers, weights)[0](self)

    def _range(self) -> list[Step]:
        return [_call(RANGE, kv_requests.range_request(self.at))]

    def _put(self) -> list[Step]:
        key = b"" if self.at.chance(1) else None
        return [_call(PUT, kv_requests.put_request(self.at, key))]

    def _delete(self) -> list[Step]:
        key = b"" if self.at.chance(2) else None
        return [_call(DELETE_RANGE, kv_requests.delete_request(self.at, key))]

    def _txn(self) -> list[Step]:
        return [_call(TXN, kv_requests.txn_request(self.at))]

    def _hash(self) -> list[Step]:
        at = self.at
        revision = 0 if at.chance(40) else at.any_revision()
        # A negative revision means nothing to HashKV; no two releases agree on it.
        return [_call(HASH_KV, pb.HashKVRequest(revision=max(0, revision)))]

    def _bad_compaction(self) -> list[Step]:
        at = self.at
        low = at.rng.choice([at.compacted, at.compacted - 5, -1, at.revision + 500, 1 << 60])
        if at.compacted == 0:
            low = at.revision + 500  # revision 0 would be a good one, once
        return [_call(COMPACT, pb.CompactionRequest(revision=low, physical=at.chance(50)))]

    def _compaction(self) -> list[Step]:
        """Wake every watch that may still be catching up, so that none is cancelled by chance."""
        at = self.at
        span = at.revision - at.compacted
        keep = at.rng.choice([0, 1, at.rng.randint(0, 50), at.rng.randint(0, max(1, span))])
        revision = max(at.compacted + 1, at.revision - keep)
        steps = [touch for watch in at.watches for touch in self._touch(watch)]
        count = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision, count_only=True)
        steps += [_call(RANGE, count), _call(HASH_KV, pb.HashKVRequest(revision=revision))]
        compaction = pb.CompactionRequest(revision=revision, physical=at.chance(50))
        steps += [_call(COMPACT, compaction), _call(HASH_KV, pb.HashKVRequest())]
        return [*steps, _call(HASH_KV, pb.HashKVRequest(revision=revision))]

    def _touch(self, watch: OpenWatch) -> list[Step]:
        if not watch.past:
            return []
        watch.past = False
        key = watch.request.key or b"\0"
        put = _call(PUT, pb.PutRequest(key=key, value=b"touch"))
        if pb.WatchCreateRequest.NOPUT not in watch.request.filters:
            return [put]
        return [put, _call(DELETE_RANGE, pb.DeleteRangeRequest(key=key))]

    def _grant(self) -> list[Step]:
        at = self.at
        ttl = at.rng.randint(5_000, 9_000_000)
        if at.chance(15):
            ttl = at.rng.choice([9_000_000_001, 1 << 62, 9_000_000_000])
        return [_call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl, ID=at.lease_id()))]

    def _grant_revoke(self) -> list[Step]:
        at = self.at
        ttl = at.rng.choice([0, 1, 2, 3, -1, -(1 << 62), 60])
        grant = pb.LeaseGrantRequest(TTL=ttl, ID=at.rng.choice([0, 0, 500, -500]))
        return [Step(Kind.GRANT_REVOKE, LEASE_GRANT.path, grant.SerializeToString())]

    def _revoke(self) -> list[Step]:
        number = 0 if self.at.chance(5) else self.at.lease_id()
        return [_call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=number))]

    def _time_to_live(self) -> list[Step]:
        request = pb.LeaseTimeToLiveRequest(ID=self.at.lease_id(), keys=self.at.chance(60))
        return [_call(LEASE_TTL, request)]

    def _leases(self) -> list[Step]:
        return [_call(LEASE_LEASES, pb.LeaseLeasesRequest())]

    def _keep_alive(self) -> list[Step]:
        number = 0 if self.at.chance(5) else self.at.lease_id()
        request = pb.LeaseKeepAliveRequest(ID=number)
        return [Step(Kind.KEEP_ALIVE, KEEP_ALIVE_PATH, request.SerializeToString())]

    def _bad(self) -> list[Step]:
        return [bad_input.bad_step(self.at)]

    def _oversized(self) -> list[Step]:
        return [bad_input.oversized_step(self.at)]

    def _stream(self) -> int:
        return self.at.rng.randrange(STREAMS)

    def _watch(self) -> list[Step]:
        if len(self.at.watches) >= MAX_WATCHES:
            return self._cancel()
        stream = self._stream()
        if self.at.chance(2):
            return [bad_input.negative_watch(self.at, stream)]
        request = pb.WatchRequest(create_request=self._watch_create())
        return [Step(Kind.WATCH_CREATE, WATCH_PATH, request.SerializeToString(), stream=stream)]

    def _watch_create(self) -> Any:
        at = self.at
        key = b"" if at.chance(4) else at.key()
        create = pb.WatchCreateRequest(key=key, range_end=at.range_end(key))
        create.start_revision = self._watch_start()
        create.prev_kv = at.chance(50)
        create.progress_notify = at.chance(20)
        create.fragment = at.chance(25)
        if at.chance(20):
            create.filters.append(at.rng.choice([0, 1, 1, 6]))
        if at.chance(20):
            create.watch_id = at.rng.choice([*range(1, 12), -3, 1 << 33])
        return create

    def _watch_start(self) -> int:
        at = self.at
        roll = at.rng.random()
        if roll < 0.5:
            return 0
        if roll < 0.8:
            return at.past()
        if roll < 0.93:
            return at.revision + at.rng.randint(1, 40)
        return max(0, at.compacted - at.rng.randint(0, 3))

    def _cancel(self) -> list[Step]:
        at = self.at
        if at.watches and at.chance(85):
            watch = at.watches.pop(at.rng.randrange(len(at.watches)))
            return [_cancel_step(watch.stream, watch.watch_id)]
        return [_cancel_step(self._stream(), at.rng.choice([9999, -1, 55]))]

    def _progress(self) -> list[Step]:
        request = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        return [
            Step(
                Kind.WATCH_PROGRESS,
                WATCH_PATH,
                request.SerializeToString(),
                stream=self._stream(),
            )
        ]

    def _close_watches(self) -> list[Step]:
        stream = self._stream()
        self.at.watches = [watch for watch in self.at.watches if watch.stream != stream]
        if self.at.chance(40):
            return [bad_input.broken_watch(self.at, stream)]
        return [Step(Kind.WATCH_CLOSE, WATCH_PATH, stream=stream)]

    def _fragments(self) -> list[Step]:
        """More than one response can hold for watches that catch up, with and without leave
        to split it; all is deleted again so that full ranges stay small."""
        start = self.at.revision + 1
        puts = [
            _call(PUT, pb.PutRequest(key=b"huge/%d" % number, value=bytes([65 + number]) * 900_000))
            for number in range(4)
        ]
        watches = [
            Step(Kind.WATCH_CREATE, WATCH_PATH, request.SerializeToString(), stream=STREAMS)
            for request in map(self._huge_watch, (start, start), (True, False))
        ]
        delete = pb.DeleteRangeRequest(key=b"huge/", range_end=b"huge0")
        close = Step(Kind.WATCH_CLOSE, WATCH_PATH, stream=STREAMS)
        return [Step(Kind.BARRIER), *puts, *watches, close, _call(DELETE_RANGE, delete)]

    def _huge_watch(self, start: int, fragment: bool) -> Any:
        create = pb.WatchCreateRequest(
            key=b"huge/", range_end=b"huge0", start_revision=start, fragment=fragment
        )
        return pb.WatchRequest(create_request=create)

    _MIX: ClassVar[tuple[tuple[float, Callable[[Generator], list[Step]]], ...]] = (
        (33, _range),
        (27, _put),
        (7, _delete),
        (19, _txn),
        (1.2, _hash),
        (0.5, _bad_compaction),
        (1.6, _grant),
        (0.2, _grant_revoke),
        (0.8, _revoke),
        (2, _time_to_live),
        (0.6, _leases),
        (1.6, _keep_alive),
        (1.6, _watch),
        (1.0, _cancel),
        (0.4, _progress),
        (0.1, _close_watches),
        (1.3, _bad),
        (0.1, _oversized),
    )

    def observe(self, steps: Sequence[Step], replies: Sequence[Reply]) -> None:
        for step, reply in zip(steps, replies, strict=True):
            if reply.ok and not step.new_only:
                self._observe_one(step, reply)

    def _observe_one(self, step: Step, reply: Reply) -> None:
        request = step.parsed()
        if step.kind is Kind.WATCH_CREATE and reply.body:
            self._observe_watch(step, request.create_request, reply)
        elif step.path == COMPACT.path:
            self.at.compacted = max(self.at.compacted, request.revision)
        elif step.path == LEASE_GRANT.path and step.kind is Kind.CALL:
            self.at.leases.add(request.ID)
        elif step.path == LEASE_REVOKE.path:
            self.at.leases.discard(request.ID)

    def _observe_watch(self, step: Step, create: Any, reply: Reply) -> None:
        response = pb.WatchResponse.FromString(reply.body)
        if response.canceled or step.stream == STREAMS:
            return
        past = 0 < create.start_revision <= response.header.revision
        self.at.watches.append(OpenWatch(step.stream, response.watch_id, create, past))


def _call(rpc: Any, request: Any) -> Step:
    return Step(Kind.CALL, rpc.path, request.SerializeToString())


def _cancel_step(stream: int, watch_id: int) -> Step:
    request = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id))
    return Step(
        Kind.WATCH_CANCEL,
        WATCH_PATH,
        request.SerializeToString(),
        stream=stream,
        watch_id=watch_id,
    )
