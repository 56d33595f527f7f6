"""A large store: filling, memory, restarts, and puts while it is compacted and defragmented."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from bench import client as api
from bench import sources
from bench.client import Call, Client
from bench.load import ClosedLoop, Load, OpenLoop, Record, quiet
from bench.measure import Sample
from bench.members import Member, Program
from bench.runner import EXPECTED, Outcome, Say, order
from bench.sources import BULK, VALUE, Mixed, Source
from bench.stats import percentile
from bench.wire import LoadError, Loop
from bench.workloads import Settings, refusals
from kvorum.pb import etcdserverpb as pb

PREFIX: Final = b"million/"
OFFERED: Final = 1_000
"""Requests/s while a maintenance call runs: well below what either server can do."""

QUIET_SECONDS: Final = 2.0
"""Rest before memory is read, and load before and after a maintenance call."""

LEAST_WINDOW: Final = 1.0
"""Seconds that count as 'meanwhile' even if the maintenance call is over earlier."""

MAINTENANCE_TIMEOUT: Final = 600.0
FILL_WIRES: Final = 4
FILL_DEPTH: Final = 4

TITLES: Final = {
    "fill": "filling with 256 B values",
    "memory": "at rest after filling and overwriting half of it",
    "restart": "restart after SIGTERM",
    "crash": "restart after kill -9",
    "compaction": f"compaction, with {OFFERED:,} puts/s",
    "defragmentation": f"defragmentation, with {OFFERED:,} puts and gets/s",
}


class LargeStore:
    """The steps on one member, in the order of TITLES."""

    def __init__(self, member: Member, keys: int, settings: Settings) -> None:
        self._member = member
        # Whole transactions only.
        self._keys = keys // BULK * BULK
        self._indexed = settings.indexed
        self._extra = 0

    def steps(self) -> dict[str, Callable[[], Sample]]:
        return {
            "fill": self.fill,
            "memory": self.memory,
            "restart": self.restart,
            "crash": self.crash,
            "compaction": self.compaction,
            "defragmentation": self.defragmentation,
        }

    def fill(self) -> Sample:
        """All keys once, then the first half again, in transactions."""
        self._member.start()
        seconds = self._bulk(self._keys) + self._bulk(self._keys // 2)
        self._check_count()
        return {"rate": 1.5 * self._keys / seconds, "seconds": seconds}

    def _bulk(self, keys: int) -> float:
        with load_of(self._member, sources.Bulk(PREFIX, VALUE), FILL_WIRES, self._indexed) as load:
            return ClosedLoop(load, FILL_DEPTH).send(keys // BULK).seconds

    def _check_count(self, uncertain: int = 0) -> None:
        """All keys that were put must be there; those of ``uncertain`` failed puts may be."""
        found = self._count()
        expected = self._keys + self._extra
        if not expected <= found <= expected + uncertain:
            raise LoadError(f"{found} keys, not the {expected} that were put")
        self._extra = found - self._keys

    def _count(self) -> int:
        client = Client(self._member.port)
        try:
            return client.count(PREFIX)
        finally:
            client.close()

    def memory(self) -> Sample:
        time.sleep(QUIET_SECONDS)
        memory = self._member.memory()
        return {
            "resident_mib": memory.resident,
            "anonymous_mib": memory.anonymous,
            "peak_mib": memory.peak,
            "database_mib": self._database(),
        }

    def _database(self) -> float:
        client = Client(self._member.port)
        try:
            return float(client.status().dbSize) / 2**20
        finally:
            client.close()

    def restart(self) -> Sample:
        stopped = self._member.stop()
        started = self._member.start()
        self._check_count()
        memory = self._member.memory().resident
        return {"stop_seconds": stopped, "start_seconds": started, "restart_mib": memory}

    def crash(self) -> Sample:
        """Some puts more, then SIGKILL: what was answered must be there afterwards.

        What is missing is a result, not an end of the run: etcd 3.5.0 to 3.5.2 are known to lose
        entries when they are killed under load.
        """
        source = sources.puts(PREFIX + b"crash/")
        with load_of(self._member, source, 10, self._indexed) as load:
            self._extra += len(ClosedLoop(load, 10).send(5_000).latencies)
        self._member.kill()
        started = self._member.start()
        lost = self._keys + self._extra - self._count()
        self._extra -= lost
        memory = self._member.memory().resident
        return {"start_seconds": started, "restart_mib": memory, "lost": float(lost)}

    def compaction(self) -> Sample:
        client = Client(self._member.port)
        try:
            revision = client.status().header.revision
        finally:
            client.close()
        request = pb.CompactionRequest(revision=revision, physical=True)
        puts = sources.puts(PREFIX + b"compaction/")
        return self._meanwhile(puts, api.COMPACT, request, pb.CompactionResponse)

    def defragmentation(self) -> Sample:
        before = self._database()
        gets = sources.gets(PREFIX, self._keys, len(VALUE))
        both = Mixed(gets, sources.puts(PREFIX + b"defragmentation/"), 2)
        request = pb.DefragmentRequest()
        sample = self._meanwhile(both, api.DEFRAGMENT, request, pb.DefragmentResponse)
        return {**sample, "database_before_mib": before, "database_mib": self._database()}

    def _meanwhile(
        self, source: Source, path: str, request: Message, reply: type[Message]
    ) -> Sample:
        """Offer load before, during and after one maintenance call."""
        maintenance = Client(self._member.port)
        with load_of(self._member, source, 10, self._indexed) as load, quiet():
            load.strict = False
            load.loop.add([maintenance.wire])
            offered = OpenLoop(load, OFFERED)
            offered.other = lambda wire, done: maintenance.settle(done)
            offered.start()
            offered.turn_for(QUIET_SECONDS)
            call = maintenance.begin(path, request)
            load.loop.send(maintenance.wire)
            offered.turn_until(lambda: ended(call))
            offered.turn_for(LEAST_WINDOW)
            record = offered.drain()
            call.result(reply)
        refused = refusals(load.failures)
        writes = record.streams
        if isinstance(source, Mixed):
            writes = [stream for stream in writes if source.is_write(stream)]
        self._extra += len(writes)
        self._check_count(uncertain=refused)
        return {**during(source, record, call), "refused": float(refused)}


def ended(call: Call) -> bool:
    """Whether a call is over; raises LoadError when it takes too long."""
    if call.ended is None and time.perf_counter() - call.started > MAINTENANCE_TIMEOUT:
        raise LoadError(f"maintenance took more than {MAINTENANCE_TIMEOUT:.0f} s")
    return call.ended is not None


def during(source: Source, record: Record, call: Call) -> Sample:
    """Latencies of the requests that were over before the call, and of those it could delay."""
    assert call.ended is not None
    until = max(call.ended, call.started + LEAST_WINDOW)
    rows = list(zip(record.began, record.latencies, record.streams, strict=True))
    before = [latency for began, latency, _ in rows if began + latency <= call.started]
    meanwhile = [row for row in rows if row[0] < until and row[0] + row[1] > call.started]
    sample = {
        "seconds": call.ended - call.started,
        "before_p99_ms": p99(before),
        "stall_ms": max(latency for _, latency, _ in meanwhile) * 1e3,
    }
    if not isinstance(source, Mixed):
        return {**sample, "during_p99_ms": p99([latency for _, latency, _ in meanwhile])}
    writes = [latency for _, latency, stream in meanwhile if source.is_write(stream)]
    reads = [latency for _, latency, stream in meanwhile if not source.is_write(stream)]
    return {**sample, "during_read_p99_ms": p99(reads), "during_write_p99_ms": p99(writes)}


def p99(values: Sequence[float]) -> float:
    return percentile(sorted(values), 99) * 1e3


@contextmanager
def load_of(member: Member, source: Source, wires: int, indexed: bool) -> Iterator[Load]:
    """A load with a loop of its own, closed afterwards."""
    loop = Loop()
    try:
        yield Load(loop, [member.port], wires, source, indexed)
    finally:
        loop.close()


def compare_large(
    programs: Sequence[Program], root: Path, settings: Settings, keys: int, say: Say
) -> list[Outcome]:
    """All steps on both servers, one server after the other, ``settings.rounds`` times."""
    outcomes = {name: Outcome(f"large-{name}", f"{keys:,} keys: {TITLES[name]}") for name in TITLES}
    for number in range(settings.rounds):
        for index in order(number):
            program = programs[index]
            member = Member(program, root / f"large-{index}")
            try:
                _steps(LargeStore(member, keys, settings), program.label, outcomes, say)
            finally:
                member.discard()
    return list(outcomes.values())


def _steps(store: LargeStore, label: str, outcomes: dict[str, Outcome], say: Say) -> None:
    """One server's steps; after one that fails the others cannot be done."""
    for name, step in store.steps().items():
        began = time.perf_counter()
        try:
            sample = step()
        except EXPECTED as error:
            outcomes[name].errors[label] = str(error) or repr(error)
            say(f"large-{name}: {label} FAILED: {error}")
            return
        outcomes[name].samples.setdefault(label, []).append(sample)
        say(f"large-{name}: {label} {time.perf_counter() - began:.1f} s")
