"""Who does what to the server during a soak, and what each of them checks."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from bench import client as api
from bench.aio import AsyncClient, Stream
from bench.client import RpcError, prefix_end
from bench.connection import Failure
from bench.soak_verdict import Findings, Limits
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb

GROUPS: Final = 16
VALUE_BYTES: Final = 512
STAMP: Final = 20
"""Bytes of a value that tell when it was sent."""

MAX_OPEN: Final = 5_000
TICK: Final = 0.005
LOST_AFTER: Final = 10.0
"""Seconds after which an event that has not come is lost."""

ENDING: Final = 60.0
"""Seconds that the last replies may take."""

KEPT_STATES: Final = 1_000

_clock = time.perf_counter
_padding: Final = b"." * (VALUE_BYTES - STAMP)


def group_prefix(group: int) -> bytes:
    return b"soak/%02d/" % group


class Ledger:
    """Compares what was done in one group of keys with the events that come of it.

    ``due`` holds revisions whose event has not come, ``early`` events whose reply has not.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._due: dict[int, float] = {}
        self._early: dict[int, float] = {}
        self._last = 0

    def done(self, revision: int, sent: float) -> None:
        """A change got ``revision``."""
        arrived = self._early.pop(revision, None)
        if arrived is None:
            self._due[revision] = sent
        else:
            self._findings.watch_delay.add(max(0.0, arrived - sent))

    def event(self, revision: int, now: float) -> None:
        """The watch delivered the change of ``revision``."""
        self._findings.events += 1
        if revision <= self._last:
            text = f"revision {revision} after {self._last}"
            self._findings.fault("event repeated or out of order", text)
            return
        self._last = revision
        sent = self._due.pop(revision, None)
        if sent is None:
            self._early[revision] = now
        else:
            self._findings.watch_delay.add(now - sent)

    @property
    def waiting(self) -> int:
        """Changes whose reply or event has not come."""
        return len(self._due) + len(self._early)

    def overdue(self, now: float) -> None:
        """Report what has been missing for too long, once."""
        for kind, held in (("event lost", self._due), ("event nobody caused", self._early)):
            late = [rev for rev, since in held.items() if now - since > LOST_AFTER]
            for revision in late:
                self._findings.fault(kind, f"revision {revision}")
                del held[revision]


class Traffic:
    """Puts, deletes and linearizable gets at a rate, one request at a time per key."""

    def __init__(
        self,
        clients: list[AsyncClient],
        findings: Findings,
        ledgers: list[Ledger],
        *,
        keys: int,
        seed: int,
    ) -> None:
        self._clients = clients
        self._findings = findings
        self._ledgers = ledgers
        self._random = random.Random(seed)
        self._keys = keys
        # Per key the revision of its last put, 0 when it is deleted; absent when not known.
        self._state: dict[int, int] = dict.fromkeys(range(keys), 0)
        self._busy: set[int] = set()
        self._turn = 0
        self._idle: asyncio.Event | None = None
        self.interval: list[float] = []

    async def run(self, rate: float, until: float) -> None:
        """Send at ``rate`` requests/s until the clock says ``until``, then wait for replies."""
        began = _clock()
        sent = 0
        while (now := _clock()) < until:
            due = int((now - began) * rate)
            self._findings.wanted += due - sent
            for _ in range(due - sent):
                if len(self._busy) < MAX_OPEN:
                    self._one()
            sent = due
            await asyncio.sleep(TICK)
        if self._busy:
            self._idle = asyncio.Event()
            await wait_all([self._idle], ENDING)

    def _one(self) -> None:
        number = self._random.randrange(self._keys)
        while number in self._busy:
            number = (number + 1) % self._keys
        self._busy.add(number)
        chance = self._random.random()
        if chance < 0.6:
            self._put(number)
        elif chance < 0.8:
            self._delete(number)
        else:
            self._get(number)

    def _key(self, number: int) -> bytes:
        return b"%s%06d" % (group_prefix(number % GROUPS), number)

    def _send(
        self, number: int, path: str, message: bytes, good: Callable[[bytes, float], None]
    ) -> None:
        sent = _clock()

        def done(reply: bytes, failure: Failure | None) -> None:
            self._busy.discard(number)
            if self._idle is not None and not self._busy:
                self._idle.set()
            if failure is not None:
                self._state.pop(number, None)
                self._findings.fault("failed request", f"{path} {failure.code} {failure.message}")
                return
            took = _clock() - sent
            self._findings.operations += 1
            self._findings.latency.add(took)
            self.interval.append(took)
            good(reply, sent)

        self._turn += 1
        self._clients[self._turn % len(self._clients)].unary(path, message, done)

    def _put(self, number: int) -> None:
        value = (b"%.6f" % _clock()).rjust(STAMP) + _padding
        request = pb.PutRequest(key=self._key(number), value=value)

        def good(reply: bytes, sent: float) -> None:
            revision = pb.PutResponse.FromString(reply).header.revision
            self._state[number] = revision
            self._ledgers[number % GROUPS].done(revision, sent)

        self._send(number, api.PUT, request.SerializeToString(), good)

    def _delete(self, number: int) -> None:
        request = pb.DeleteRangeRequest(key=self._key(number))

        def good(reply: bytes, sent: float) -> None:
            answer = pb.DeleteRangeResponse.FromString(reply)
            before = self._state.get(number)
            if before is not None and answer.deleted != (before > 0):
                text = f"{answer.deleted} keys deleted where revision {before} was"
                self._findings.fault("stale read", text)
            self._state[number] = 0
            if answer.deleted:
                self._ledgers[number % GROUPS].done(answer.header.revision, sent)

        self._send(number, "/etcdserverpb.KV/DeleteRange", request.SerializeToString(), good)

    def _get(self, number: int) -> None:
        request = pb.RangeRequest(key=self._key(number))

        def good(reply: bytes, sent: float) -> None:
            answer = pb.RangeResponse.FromString(reply)
            found = answer.kvs[0].mod_revision if answer.kvs else 0
            expected = self._state.setdefault(number, found)
            self._findings.reads += 1
            if found != expected:
                text = f"revision {found} read, {expected} was the last"
                self._findings.fault("stale read", text)

        self._send(number, api.RANGE, request.SerializeToString(), good)


class Watcher:
    """Watches a range on a stream of its own; every event goes to ``on_event``.

    ``first`` is set by the first event and, as all others, when the server ends the watch, for
    instance because the start has been compacted; ``compacted`` then has the revision.
    """

    def __init__(
        self,
        client: AsyncClient,
        prefix: bytes,
        on_event: Callable[[mvccpb.Event, float], None],
        *,
        start: int = 0,
    ) -> None:
        self._on_event = on_event
        self.created = asyncio.Event()
        self.first = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.compacted = 0
        self._id = 0
        self._stream = Stream(client, api.WATCH, self._message)
        create = pb.WatchCreateRequest(
            key=prefix, range_end=prefix_end(prefix), start_revision=start
        )
        self._stream.write(pb.WatchRequest(create_request=create))

    def _message(self, message: bytes) -> None:
        now = _clock()
        response = pb.WatchResponse.FromString(message)
        if response.created:
            self._id = response.watch_id
            self.created.set()
        for event in response.events:
            self.first.set()
            self._on_event(event, now)
        if response.canceled:
            self.compacted = response.compact_revision
            for signal in (self.created, self.first, self.cancelled):
                signal.set()

    def cancel(self) -> None:
        """Ask the server to end the watch; ``cancelled`` is set when it says it has."""
        cancel = pb.WatchCancelRequest(watch_id=self._id)
        self._stream.write(pb.WatchRequest(cancel_request=cancel))

    def close(self) -> None:
        """End the stream."""
        self._stream.cancel()


async def wait_all(events: Iterable[asyncio.Event], limit: float = 30.0) -> None:
    """Wait for all events; raises TimeoutError after ``limit`` seconds."""
    async with asyncio.timeout(limit):
        for event in events:
            await event.wait()


async def catch_up(client: AsyncClient, findings: Findings, group: int, back: int) -> None:
    """A new watch from ``back`` revisions ago must bring them in order, then end when asked."""
    status = await client.call(api.STATUS, pb.StatusRequest(), pb.StatusResponse)
    start = max(1, status.header.revision - back)
    last = start - 1

    def on_event(event: mvccpb.Event, now: float) -> None:
        nonlocal last
        revision = event.kv.mod_revision
        if revision <= last:
            text = f"revision {revision} after {last} on catching up"
            findings.fault("event repeated or out of order", text)
        last = revision

    watcher = Watcher(client, group_prefix(group), on_event, start=start)
    await wait_all([watcher.created, watcher.first])
    watcher.cancel()
    await wait_all([watcher.cancelled])
    watcher.close()
    findings.catch_ups += 1


class Leases:
    """Lease lives: granted with a key each, some kept alive for a while, some revoked, the others
    left to expire, whose keys must then be deleted neither early nor late."""

    PREFIX: Final = b"lease/"

    def __init__(self, client: AsyncClient, findings: Findings, limits: Limits) -> None:
        self._client = client
        self._findings = findings
        self._limits = limits
        self._deleted: dict[bytes, asyncio.Future[float]] = {}
        self._renewed: dict[int, deque[asyncio.Future[int]]] = {}
        self._renewals = Stream(client, api.LEASE_KEEPALIVE, self._answered)
        self._number = 0

    def on_event(self, event: mvccpb.Event, now: float) -> None:
        """Takes the events of the watch on PREFIX."""
        waiting = self._deleted.get(event.kv.key)
        if event.type == mvccpb.Event.DELETE and waiting is not None and not waiting.done():
            waiting.set_result(now)

    async def one(self, seconds: int, renewals: int, *, revoke: bool) -> None:
        """One lease from grant to end."""
        request = pb.LeaseGrantRequest(TTL=seconds)
        sent = _clock()
        lease = await self._client.call(api.LEASE_GRANT, request, pb.LeaseGrantResponse)
        self._number += 1
        key = b"%s%d" % (self.PREFIX, self._number)
        gone = self._deleted[key] = asyncio.get_running_loop().create_future()
        try:
            put = pb.PutRequest(key=key, value=b"leased", lease=lease.ID)
            await self._client.call(api.PUT, put, pb.PutResponse)
            answered = _clock()
            for _ in range(renewals):
                await asyncio.sleep(lease.TTL / 3)
                asked = _clock()
                remaining = await self._renew(lease.ID)
                if remaining <= 0:
                    # Fair when we or the server were held up for longer than the lease lives.
                    self._judge_expiry(lease.ID, lease.TTL, sent, _clock())
                    break
                sent, answered = asked, _clock()
                self._findings.kept_alive += 1
            await self._end(lease.ID, lease.TTL, (sent, answered), gone, revoke=revoke)
        finally:
            del self._deleted[key]

    async def _renew(self, lease: int) -> int:
        """Returns the lease's new time to live, 0 when it is gone."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._renewed.setdefault(lease, deque()).append(future)
        self._renewals.write(pb.LeaseKeepAliveRequest(ID=lease))
        async with asyncio.timeout(30):
            return await future

    def _judge_expiry(self, lease: int, seconds: int, sent: float, when: float) -> None:
        """A lease may not be gone before its time, counted from the last renewal's sending."""
        early = sent + seconds - when
        if early > self._limits.early:
            text = f"lease {lease:x} of {seconds} s {early * 1e3:.0f} ms early"
            self._findings.fault("lease expired early", text)

    def _answered(self, message: bytes) -> None:
        reply = pb.LeaseKeepAliveResponse.FromString(message)
        waiting = self._renewed.get(reply.ID)
        if waiting:
            future = waiting.popleft()
            if not waiting:
                del self._renewed[reply.ID]
            if not future.done():
                future.set_result(reply.TTL)

    async def _end(
        self,
        lease: int,
        seconds: int,
        renewed: tuple[float, float],
        gone: asyncio.Future[float],
        *,
        revoke: bool,
    ) -> None:
        """Wait for the key's deletion; ``renewed`` is when the last renewal was sent, answered."""
        if revoke:
            request = pb.LeaseRevokeRequest(ID=lease)
            await self._client.call(api.LEASE_REVOKE, request, pb.LeaseRevokeResponse)
            self._findings.revoked += 1
        sent, answered = renewed
        try:
            async with asyncio.timeout(seconds + self._limits.expiry_worst + 10):
                when = await gone
        except TimeoutError:
            self._findings.fault("lease not expired", f"lease {lease:x} of {seconds} s")
            return
        if revoke:
            return
        self._findings.expired += 1
        self._judge_expiry(lease, seconds, sent, when)
        self._findings.expiry_delay.add(max(0.0, when - answered - seconds))


class Maintenance:
    """Compactions and defragmentations, and a look at what the server compacted by itself."""

    def __init__(self, client: AsyncClient, findings: Findings) -> None:
        self._client = client
        self._findings = findings
        self._by_hand: deque[int] = deque(maxlen=KEPT_STATES)
        self._compacted = 0

    async def look(self) -> int:
        """The compacted revision: a watch from revision 1 is refused with it."""
        watcher = Watcher(self._client, b"soak/", lambda event, now: None, start=1)
        await wait_all([watcher.first])
        compacted = watcher.compacted
        watcher.close()
        if compacted > self._compacted:
            self._compacted = compacted
            if compacted not in self._by_hand:
                self._findings.auto_compactions += 1
        return compacted

    async def compact(self) -> None:
        """Compact a tenth of the history, so that the server's own turn has work left."""
        compacted = await self.look()
        status = await self._client.call(api.STATUS, pb.StatusRequest(), pb.StatusResponse)
        target = compacted + (status.header.revision - compacted) // 10
        if target <= compacted:
            return
        request = pb.CompactionRequest(revision=target, physical=True)
        self._by_hand.append(target)
        try:
            await self._client.call(api.COMPACT, request, pb.CompactionResponse)
        except RpcError as error:
            # The server's own compaction may have come in between.
            if "compacted" not in error.message:
                raise
            return
        self._findings.manual_compactions += 1

    async def defragment(self) -> None:
        request = pb.DefragmentRequest()
        await self._client.call(api.DEFRAGMENT, request, pb.DefragmentResponse, limit=120)
        self._findings.defragmentations += 1
