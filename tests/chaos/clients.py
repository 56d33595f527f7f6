"""Clients that read and write a few keys at whichever member answers, and write everything down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from chaos.members import ChaosMember

from kvorum import errors
from kvorum.errors import Code
from kvorum.h2 import Channel, RpcError
from kvorum.pb import etcdserverpb as pb
from kvorum.testing.history import Compare, Delete, Get, Operation, Put, Request, Txn
from sim import words

TIMEOUT: Final = 3.0
PATIENCE: Final = 0.05
"""Seconds until a client that was refused looks for another member."""

_NO_EFFECT: Final = frozenset(
    each.message
    for each in (
        errors.KeyNotFound,
        errors.Compacted,
        errors.FutureRev,
        errors.NotSupportedForLearner,
        errors.RequestTooManyRequests,
    )
)


class Records:
    """What all clients asked, and what they were told."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.revision = 1
        """The newest that anybody was told of."""
        self.acknowledged = 0
        """How many writes were."""
        self.failures: dict[str, int] = {}
        self._changed = asyncio.Event()

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        if operation.result is None:
            return
        self.revision = max(self.revision, operation.result.revision)
        if not isinstance(operation.request, Get):
            self.acknowledged += 1
            self._changed.set()

    def failed(self, error: RpcError) -> None:
        text = f"{Code(error.code).name}: {error.message[:60]}"
        self.failures[text] = self.failures.get(text, 0) + 1

    async def progress(self, count: int, seconds: float) -> bool:
        """Whether so many more writes are acknowledged within some time."""
        goal = self.acknowledged + count
        try:
            async with asyncio.timeout(seconds):
                while self.acknowledged < goal:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


class Connections:
    """One client's channels to the members, of which it uses one until it has a reason not to."""

    def __init__(self, members: Sequence[ChaosMember], chance: Random) -> None:
        self.members = members
        self.chance = chance
        self._channels: dict[str, Channel] = {}
        self._at = chance.choice(members)

    def channel(self) -> Channel:
        if self.chance.random() < 0.02:
            self.move()
        at = self._at
        if at.name not in self._channels:
            self._channels[at.name] = at.channel()
        return self._channels[at.name]

    @property
    def at(self) -> ChaosMember:
        """Where the last channel leads."""
        return self._at

    def move(self) -> None:
        """Go to another member."""
        others = [each for each in self.members if each is not self._at and each.running]
        self._at = self.chance.choice(others or list(self.members))

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class Client:
    """Asks for this and that until it is stopped, one thing after the other. Values are never
    written twice, so that it is plain which write a read has seen."""

    def __init__(
        self, name: str, members: Sequence[ChaosMember], records: Records, chance: Random, keys: int
    ) -> None:
        self.name = name
        self.stopped = False
        self.think = 0.03
        self._records = records
        self._chance = chance
        self._connections = Connections(members, chance)
        self._keys = [b"k%02d" % number for number in range(keys)]
        self._seen: dict[bytes, int] = {}  # mod revisions, for transactions that may succeed
        self._written = 0

    async def run(self) -> None:
        try:
            while not self.stopped:
                await self._ask(self._request())
                await asyncio.sleep(self._chance.expovariate(1 / self.think))
        finally:
            await self._connections.close()

    async def _ask(self, request: Request) -> None:
        path, message = words.encode(request)
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            channel = self._connections.channel()
            answer = await channel.unary(path, message, timeout=TIMEOUT)
        except RpcError as error:
            self._records.failed(error)
            if not isinstance(request, Get) and not _was_not_done(error):
                self._records.add(Operation(self.name, request, start, loop.time()))
            self._connections.move()
            await asyncio.sleep(PATIENCE)
            return
        result = words.decode(request, answer)
        self._records.add(Operation(self.name, request, start, loop.time(), result))
        for kv in getattr(result, "kvs", ()):
            self._seen[kv.key] = kv.mod
        if isinstance(request, Put):
            self._seen[request.key] = result.revision

    def _value(self) -> bytes:
        self._written += 1
        padding = self._chance.choice([0, 0, 20, 200])
        return f"{self.name}.{self._written}.".encode() + b"x" * padding

    def _request(self) -> Request:
        chance = self._chance
        key = chance.choice(self._keys)
        dice = chance.random()
        if dice < 0.4:
            return Put(key, self._value(), prev=chance.random() < 0.2)
        if dice < 0.6:
            return Get(b"k", b"l") if chance.random() < 0.1 else Get(key)
        if dice < 0.72:
            return Get(key, b"l" if chance.random() < 0.2 else b"", serializable=True)
        if dice < 0.78:
            return Delete(key, prev=chance.random() < 0.3)
        if dice < 0.80:
            return Delete(key, chance.choice(self._keys) + b"~")
        return self._txn(key)

    def _txn(self, key: bytes) -> Txn:
        chance = self._chance
        other = chance.choice(self._keys)
        compares = [Compare(key, "mod", "=", self._seen.get(key, 0))]
        if chance.random() < 0.3:
            compares = [Compare(key, "version", chance.choice("<>="), chance.randint(0, 3))]
        success: list[Request] = [Put(key, self._value(), prev=chance.random() < 0.3)]
        if other != key:
            success.append(chance.choice([Put(other, self._value()), Delete(other), Get(other)]))
        success.append(Get(key))
        failure: list[Request] = [Get(key)]
        if chance.random() < 0.2:
            failure = [Put(key, self._value()), Get(other)]
        return Txn(tuple(compares), tuple(success), tuple(failure))


class Compactor:
    """Compacts now and then, some revisions behind what was last heard of."""

    def __init__(
        self, members: Sequence[ChaosMember], records: Records, chance: Random, interval: float
    ) -> None:
        self.stopped = False
        self.compacted = 0
        self._records = records
        self._chance = chance
        self._interval = interval
        self._connections = Connections(members, chance)

    async def run(self) -> None:
        try:
            while not self.stopped:
                await asyncio.sleep(self._chance.expovariate(1 / self._interval))
                revision = self._records.revision - self._chance.randint(0, 100)
                if revision > max(1, self.compacted):
                    await self._compact(revision)
        finally:
            await self._connections.close()

    async def _compact(self, revision: int) -> None:
        request = pb.CompactionRequest(revision=revision, physical=self._chance.random() < 0.3)
        try:
            channel = self._connections.channel()
            await channel.unary(words.COMPACT, request.SerializeToString(), timeout=TIMEOUT)
        except RpcError as error:
            self._records.failed(error)
            self._connections.move()
        else:
            self.compacted = revision


def _was_not_done(error: RpcError) -> bool:
    """Whether the error says for certain that a write had no effect, and never will."""
    if error.message in _NO_EFFECT:
        return True
    waiting = error.message.startswith("context deadline exceeded while waiting for a connection")
    return waiting or "Connection refused" in error.message
