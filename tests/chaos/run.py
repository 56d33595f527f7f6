"""Load, disturbances and judgement, round after round on one cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from chaos.clients import Client, Compactor, Records
from chaos.cluster import ELECTION, Cluster
from chaos.nemesis import Nemesis
from chaos.verdicts import excused, verdict
from chaos.watchers import Watcher
from support.rpc import RANGE

from kvorum.testing.history import Get, Operation
from kvorum.testing.kvmodel import State
from sim import words

KEYS = 12
COMPACTION = 1.5
"""Seconds between two, in the mean."""
RETURN = 2 * ELECTION + 1.0
"""Seconds within which a cluster that was made whole has a leader: two election time-outs, after
what TCP needs to notice that the wire is whole (`network`)."""


@dataclass
class Report:
    """What one round gave."""

    wrong: list[str] = field(default_factory=list)
    acknowledged: int = 0
    operations: int = 0
    unknown: int = 0
    events: int = 0
    watches: int = 0
    resent: list[str] = field(default_factory=list)
    """Watches that were sent something twice by members that are known for it."""
    returns: list[tuple[str, float]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        slowest = max(self.returns, key=lambda each: each[1], default=("", 0.0))
        return (
            f"{self.operations} operations, {self.acknowledged} writes acknowledged,"
            f" {self.unknown} unknown, {self.events} events in {self.watches} watches,"
            f" {len(self.returns)} disturbances, slowest return of a leader {slowest[1]:.2f} s"
            f" ({slowest[0]}), {len(self.resent)} watches excused {self.resent}"
        )


class Run:
    """Rounds on one cluster: each begins with all quiet, and with what the last one left."""

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        *,
        clients: int = 8,
        watchers: int = 4,
        compacts: bool = True,
    ) -> None:
        self.cluster = cluster
        self.chance = Random(seed)
        self._clients = clients
        self._watchers = watchers
        self._compacts = compacts
        self._open: list[Operation] = []
        """Requests of earlier rounds of which nobody knows whether they took effect."""
        self._rounds = 0

    @asynccontextmanager
    async def load(self, report: Report) -> AsyncIterator[Records]:
        """Clients and watchers at work; at the end all members hold the same and all is judged."""
        initial = await self.state()
        self._rounds += 1
        records = Records()
        records.operations += self._open
        clients = [self._client(number, records) for number in range(self._clients)]
        watchers = [self._watcher(number, initial) for number in range(self._watchers)]
        compactor = self._compactor(records)
        workers = [*clients, *compactor]
        tasks = [asyncio.create_task(each.run()) for each in (*workers, *watchers)]
        try:
            yield records
            for worker in workers:
                worker.stopped = True
            await asyncio.wait_for(asyncio.gather(*tasks[: len(workers)]), 20.0)
            await self._judge(report, watchers, records, initial)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _judge(
        self, report: Report, watchers: list[Watcher], records: Records, initial: State
    ) -> None:
        revision = await self.cluster.revision()
        await asyncio.gather(*(watcher.reach(revision, 20.0) for watcher in watchers))
        for watcher in watchers:
            watcher.stopped = True
        report.wrong += await self._differences(revision)
        await self._read_all(records)
        report.wrong += await asyncio.to_thread(
            verdict, records, watchers, initial, revision, compacted=self._compacts
        )
        self._open = [op for op in records.operations if op.result is None]
        report.operations = len(records.operations)
        report.acknowledged = records.acknowledged
        report.unknown = len(self._open)
        report.failures = records.failures
        report.watches = sum(len(watcher.watches) for watcher in watchers)
        report.events = sum(len(list(w.events())) for each in watchers for w in each.watches)
        report.resent = [
            f"{watch.name} by {each.servings[watch.name]}"
            for each in watchers
            for watch in each.watches
            if excused(each, watch).responses != watch.responses
        ]

    async def _read_all(self, records: Records) -> None:
        """What every member has in the end belongs to the history."""
        loop = asyncio.get_running_loop()
        for member in self.cluster.all:
            for serializable in (False, True):
                request = Get(b"\0", b"\0", serializable=serializable)
                start = loop.time()
                reply = await member.ask(
                    RANGE, timeout=10.0, key=b"\0", range_end=b"\0", serializable=serializable
                )
                assert reply is not None, f"{member.name} does not answer"
                result = words.decode(request, reply.SerializeToString())
                records.add(Operation(member.name, request, start, loop.time(), result))

    async def _differences(self, revision: int) -> list[str]:
        hashes = await self.cluster.hashes(revision, 30.0)
        if len(set(hashes.values())) == 1:
            return []
        return [f"members differ at revision {revision}: {hashes}"]

    def _compactor(self, records: Records) -> list[Compactor]:
        chance = Random(self.chance.random())
        made = Compactor(self.cluster.all, records, chance, COMPACTION)
        return [made] if self._compacts else []

    def _client(self, number: int, records: Records) -> Client:
        chance = Random(self.chance.random())
        name = f"r{self._rounds}c{number}"
        return Client(name, self.cluster.all, records, chance, KEYS)

    def _watcher(self, number: int, initial: State) -> Watcher:
        chance = Random(self.chance.random())
        key, end = [(b"k", b"l"), (b"k03", b""), (b"k02", b"k08"), (b"k", b"\0")][number % 4]
        name = f"r{self._rounds}w{number}"
        return Watcher(
            name, self.cluster.all, chance, key, end, start=initial.revision + 1, prev=number == 2
        )

    async def state(self) -> State:
        """What the key space holds; while nobody writes."""
        await self.cluster.settled(30.0)
        for _ in range(100):
            for member in self.cluster.serving:
                reply = await member.ask(RANGE, timeout=5.0, key=b"\0", range_end=b"\0")
                if reply is not None:
                    pairs = {kv.key: words.pair(kv) for kv in reply.kvs}
                    return State(reply.header.revision, pairs)
        raise AssertionError(f"nobody answers: {await self.cluster.describe()}")

    async def disturbed(self, nemesis: Nemesis, seconds: float) -> Report:
        """A round: load, one disturbance after the other for that long, and the judgement."""
        loop = asyncio.get_running_loop()
        report = Report()
        end = loop.time() + seconds
        try:
            async with self.load(report) as records:
                await self._progress(records)
                while loop.time() < end:
                    await self._strike(nemesis, report)
                    await self._progress(records)
                    nemesis.tell("writes are acknowledged")
        except AssertionError as error:
            error.add_note("\n".join([*nemesis.story, self.cluster.log_tails()]))
            raise
        return report

    async def _progress(self, records: Records) -> None:
        made = await records.progress(20, 20.0)
        assert made, f"no progress: {await self.cluster.describe()}; {records.failures}"

    async def _strike(self, nemesis: Nemesis, report: Report) -> None:
        """One disturbance, and how long after it was made good there is a leader again."""
        name = await nemesis.strike()
        took = await self.cluster.settled(30.0)
        report.returns.append((name, took))
        nemesis.tell(f"there is a leader after {took:.2f} s")
        if took > RETURN:
            report.wrong.append(f"no leader for {took:.2f} s after {name!r} was made good")
