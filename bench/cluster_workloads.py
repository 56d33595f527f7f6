"""What is compared of clusters of three: throughput, failover, and members that catch up."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench import sources
from bench.client import PUT, Call, Client
from bench.cluster import Cluster, status_of
from bench.load import ClosedLoop, Load, OpenLoop, Record, quiet
from bench.measure import Sample
from bench.members import Member, Program, Server
from bench.sources import VALUE, Source
from bench.stats import percentile
from bench.wire import LoadError, Loop
from bench.workloads import (
    Settings,
    Unary,
    Workload,
    fill_one,
    refusals,
    verify_puts,
    with_client,
)
from kvorum.pb import etcdserverpb as pb

FAILOVERS: Final = 6
"""At least so many in all rounds together."""

PUT_EVERY: Final = 0.01
"""Seconds between two attempts to put while there is no leader."""

FAILOVER_TIMEOUT: Final = 60.0
MISSED: Final = 100_000
OFFERED: Final = 1_000
"""Puts/s to the leader while a member catches up: well below what either can do."""

IDLE_SECONDS: Final = 5.0
LEAST_WINDOW: Final = 1.0
"""Seconds that count as 'meanwhile' even if the member is there earlier."""

CATCH_UP_TIMEOUT: Final = 600.0
LOOK_EVERY: Final = 0.05
"""Seconds between two looks at the member that catches up, and at the leader's memory."""

BIG_VALUE: Final = 5_000
BIG_BULK: Final = 3
"""Values in one transaction, which just fits one frame."""

LOG_IS_KEPT: Final = "--snapshot-count=1000000"
"""Of the flags that come twice the last one counts."""

IN_MEMORY_TOO: Final = "--snapshot-catchup-entries=1000000"
"""Since 3.6 the log in memory, which is what followers get, is cut more often than snapshots are
taken. Releases before do not know the flag, and do not need it."""


class Failover:
    """kill -9 of the leader, and the time until the first put through another member is answered
    that was sent after it."""

    name = "cluster-failover"
    title = "kill -9 of the leader until the first put through another member"

    def prepare(self, member: Server) -> None:
        """Nothing to fill."""

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        assert isinstance(member, Cluster)
        taken = []
        for _ in range(-(-FAILOVERS // settings.rounds)):
            member.settle()
            taken.append(_fail_over(member) * 1e3)
        return {"failover_ms": percentile(sorted(taken), 50), "failover_max_ms": max(taken)}


def _fail_over(cluster: Cluster) -> float:
    """Seconds. The killed member is started again afterwards."""
    victim = cluster.leader
    loop = Loop()
    clients = [Client(follower.port) for follower in cluster.followers]
    try:
        loop.add([client.wire for client in clients])
        began = time.perf_counter()
        victim.kill()
        taken = _first_put(loop, clients) - began
    finally:
        loop.close()
    victim.start()
    return taken


def _first_put(loop: Loop, clients: list[Client]) -> float:
    """When the first of many puts was answered with OK. A put that is under way to a dead leader
    is lost, so there is a new one every few milliseconds."""
    by_wire = {client.wire: client for client in clients}
    calls: list[Call] = []
    due = time.perf_counter()
    until = due + FAILOVER_TIMEOUT
    while due < until:
        for client in clients:
            calls.append(client.begin(PUT, pb.PutRequest(key=b"failover", value=VALUE)))
            loop.send(client.wire)
        due += PUT_EVERY
        while loop.sleep(due - time.perf_counter()):
            for wire, done in loop.turn(0):
                by_wire[wire].settle(done)
                loop.send(wire)
            answered = [c.ended for c in calls if c.ended is not None and c.failure is None]
            if answered:
                return min(answered)
    raise LoadError(f"no put was answered for {FAILOVER_TIMEOUT:.0f} s after the leader's end")


@dataclass(frozen=True, slots=True)
class Late:
    """A member that has something to catch up with. ``start`` brings it up, ``clean`` takes it
    away again if it does not belong to the cluster."""

    member: Member
    start: Callable[[], object]
    clean: Callable[[], None]


@contextmanager
def prompt_threads() -> Iterator[None]:
    """With threads that do not keep one another waiting for long."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Behind(Protocol):
    """How a member comes to be behind."""

    def prepare(self, cluster: Cluster) -> None: ...
    def late(self, cluster: Cluster, number: int) -> Late: ...


class NewLearner:
    """A learner joins that has nothing, while the leader has ``megabytes`` in values."""

    def __init__(self, megabytes: int) -> None:
        self._puts = megabytes * 10**6 // BIG_VALUE

    def prepare(self, cluster: Cluster) -> None:
        value = VALUE * (BIG_VALUE // len(VALUE) + 1)
        source = sources.Bulk(b"learner/", value[:BIG_VALUE], BIG_BULK)
        send(cluster, source, 4, 4, self._puts // BIG_BULK)

    def late(self, cluster: Cluster, number: int) -> Late:
        id_, learner = cluster.add_learner()

        def clean() -> None:
            cluster.remove(id_)
            learner.discard()

        return Late(learner, learner.spawn, clean)


class Missed:
    """A follower was down during ``puts`` puts.

    Each time in a cluster that begins: a member replays its whole log when it is started, and a
    leader that has sent a snapshot keeps its log for half a minute, and sends no other.
    """

    def __init__(self, puts: int) -> None:
        self._puts = puts

    def prepare(self, cluster: Cluster) -> None:
        """Nothing to fill."""

    def late(self, cluster: Cluster, number: int) -> Late:
        cluster.renew()
        follower = cluster.followers[0]
        follower.stop()
        send(cluster, sources.puts(b"missed/%d/" % number), 10, 10, self._puts)
        return Late(follower, follower.spawn, lambda: None)


def send(cluster: Cluster, source: Source, wires: int, depth: int, requests: int) -> None:
    """As fast as the leader takes them."""
    cluster_loop = Loop()
    try:
        load = Load(cluster_loop, [cluster.port], wires, source, indexed=False)
        ClosedLoop(load, depth).send(requests)
    finally:
        cluster_loop.close()


@dataclass(frozen=True, slots=True)
class CatchUp:
    """A member that is behind comes up, while puts go to the leader at a fixed rate."""

    name: str
    title: str
    behind: Behind
    log_is_kept: bool = False

    def prepare(self, member: Server) -> None:
        assert isinstance(member, Cluster)
        member.settle()
        self.behind.prepare(member)

    def round(self, member: Server, number: int, settings: Settings) -> Sample:
        assert isinstance(member, Cluster)
        late = self.behind.late(member, number)
        prefix = b"%s/%d/" % (self.name.encode(), number)
        loop = Loop()
        try:
            load = Load(loop, member.ports[:1], 10, sources.puts(prefix), settings.indexed)
            watch = _Watch(member.leader, late.member)
            record = watch.run(load, late.start)
        finally:
            loop.close()
        refused = refusals(load.failures)
        with_client(member, lambda client: verify_puts(client, prefix, load.good))
        late.clean()
        return {**watch.sample(record), "refused": float(refused)}


class _Watch:
    """Looks at the member that catches up and at the leader's memory, while load is offered.

    The looking is a thread's, and goes on all the time: a member that is busy with starting takes
    its time to answer, and the requests must not wait for that.
    """

    def __init__(self, leader: Member, late: Member) -> None:
        self._leader = leader
        self._late = late
        self._target = 0
        self._started = self._ended = 0.0
        self._before = leader.memory()
        self._most = 0.0
        self._failed: Exception | None = None
        self._over = threading.Event()

    def run(self, load: Load, start: Callable[[], object]) -> Record:
        """Offer load before, while and after the member catches up."""
        looking = threading.Thread(target=self._look)
        load.strict = False
        with quiet(), prompt_threads():
            looking.start()
            try:
                return self._offer(load, start)
            finally:
                self._over.set()
                looking.join()

    def _offer(self, load: Load, start: Callable[[], object]) -> Record:
        offered = OpenLoop(load, OFFERED)
        offered.start()
        offered.turn_for(IDLE_SECONDS)
        self._leader.reset_peak()
        self._before = self._leader.memory()
        self._most = self._before.anonymous
        self._target = status_of(self._leader).header.revision
        self._started = time.perf_counter()
        start()
        offered.turn_until(self._is_there)
        offered.turn_for(LEAST_WINDOW)
        return offered.drain()

    def _is_there(self) -> bool:
        if self._failed is not None:
            raise self._failed
        if time.perf_counter() - self._started > CATCH_UP_TIMEOUT:
            raise LoadError(f"the member did not catch up within {CATCH_UP_TIMEOUT:.0f} s")
        return bool(self._ended)

    def _look(self) -> None:
        """The thread."""
        try:
            while not self._over.wait(LOOK_EVERY):
                self._most = max(self._most, self._leader.memory().anonymous)
                # Looked at before it is started, too, which costs the same.
                late = self._started > 0.0  # it may be started while the leader is asked
                revision = status_of(self._late if late else self._leader).header.revision
                if late and not self._ended and revision >= self._target:
                    self._ended = time.perf_counter()
        except (LoadError, OSError) as error:
            self._failed = error

    def sample(self, record: Record) -> Sample:
        """Latencies of the requests that ended before, and of those that could be delayed."""
        until = max(self._ended, self._started + LEAST_WINDOW)
        rows = list(zip(record.began, record.latencies, strict=True))
        before = [latency for began, latency in rows if began + latency <= self._started]
        meanwhile = [
            latency for began, latency in rows if began < until and began + latency > self._started
        ]
        idle, busy = (percentile(sorted(part), 99) * 1e3 for part in (before, meanwhile))
        return {
            "seconds": self._ended - self._started,
            "before_p99_ms": idle,
            "during_p99_ms": busy,
            "p99_times": busy / idle,
            "stall_ms": max(meanwhile) * 1e3,
            "growth_mib": self._leader.memory().peak - self._before.resident,
            "growth_anonymous_mib": self._most - self._before.anonymous,
        }


def _puts(connections: int, *, spread: bool) -> Unary:
    where = "spread" if spread else "leader"
    return Unary(
        f"cluster-put-{connections}x10" + ("-spread" if spread else ""),
        f"three members: put 256 B, {connections} connections x 10, {where}",
        connections,
        10,
        sources.puts,
        verify=verify_puts,
        spread=spread,
    )


def _gets(*, spread: bool) -> Unary:
    where = "spread" if spread else "leader"
    return Unary(
        "cluster-get" + ("-spread" if spread else ""),
        f"three members: linearizable get of one key, 10 x 10, {where}",
        10,
        10,
        lambda prefix: sources.one_get(b"one", len(VALUE), serializable=False),
        fill=fill_one,
        spread=spread,
    )


def of_clusters(megabytes: int) -> list[Workload]:
    """The workloads of ``--cluster``; ``megabytes`` is what a learner has to get."""
    return [
        *(_puts(number, spread=spread) for number in (10, 100) for spread in (False, True)),
        *(_gets(spread=spread) for spread in (True, False)),
        Failover(),
        CatchUp(
            "cluster-missed",
            f"a follower restarted after {MISSED:,} missed entries, {OFFERED:,} puts/s",
            Missed(MISSED),
            log_is_kept=True,
        ),
        CatchUp(
            "cluster-compacted",
            f"the same, the entries being compacted, {OFFERED:,} puts/s",
            Missed(MISSED),
        ),
        CatchUp(
            "cluster-learner",
            f"a learner gets {megabytes:,} MB, {OFFERED:,} puts/s",
            NewLearner(megabytes),
        ),
    ]


def cluster_for(program: Program, root: Path, workload: Workload) -> Server:
    """What the workload is to run on."""
    if not getattr(workload, "log_is_kept", False):
        return Cluster(program, root)
    older = program.release() < (3, 6)
    return Cluster(program, root, (LOG_IS_KEPT,) if older else (LOG_IS_KEPT, IN_MEMORY_TOO))
