"""One run: a plan is carried out, everything heals, and what came of it is judged."""

from __future__ import annotations

import gc
import itertools
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from zlib import crc32

from kvorum.log import shared
from kvorum.testing.watch_guarantees import Watch
from sim import verdicts
from sim.clients import Caller, Compactor, KVClient, Records
from sim.cluster import Cluster
from sim.leases import LeaseClient, judge
from sim.limits import TooLong, computing
from sim.nemesis import Nemesis
from sim.operators import Membership, Mover
from sim.plan import Plan, draw
from sim.process import Process
from sim.substitute import simulated
from sim.watchers import Watcher
from sim.world import World

HEALING: Final = 30.0
"""Seconds within which a healed cluster has to serve at every member, and agree."""
MOST_COMPUTING: Final = 300.0
"""Seconds of it for a run; they take one to three."""
LOOK_INTERVAL: Final = 0.005
SILENT: Final = 6


@dataclass(slots=True)
class Report:
    """What came of a seed."""

    seed: int
    wrong: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    events: int = 0
    operations: int = 0
    unknown: int = 0
    revision: int = 0
    seconds: float = 0.0
    fingerprint: int = 0

    @property
    def ok(self) -> bool:
        return not self.wrong


def run(
    seed: int,
    *,
    plan: Plan | None = None,
    listen: Callable[[str], None] | None = None,
    prepare: Callable[[Run], None] | None = None,
) -> Report:
    """Run a seed. ``listen`` gets each line of the trace, ``prepare`` the run before it begins."""
    began = time.process_time()
    world = World(seed)
    with _quiet(), _uncollected(), simulated(world) as system:
        cluster = Cluster(world, system, plan or draw(seed))
        if listen is not None:
            cluster.listen = listen
        this = Run(cluster)
        if prepare is not None:
            prepare(this)
        report = this.report()
    del world, system, cluster, this
    with _unraisable():
        gc.collect()
    report.seconds = time.process_time() - began
    return report


class Actor(Protocol):
    """Somebody who does things until stopped."""

    stopped: bool

    def start(self) -> None: ...


class Run:
    """A cluster with its clients and its troubles."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.plan = cluster.plan
        self.records = Records()
        self._complaints = cluster.ledger.wrong
        values = map(b"v%d".__mod__, itertools.count(1))
        plan = self.plan
        self.clients = [
            KVClient(self._caller(f"c{n}"), plan, lambda: next(values)) for n in range(plan.clients)
        ]
        self.watchers = [self._watcher(n) for n in range(plan.watchers)]
        self.leases = [LeaseClient(self._caller(f"l{n}"), n) for n in range(plan.lease_clients)]
        self.compactor = Compactor(self._caller("compactor"), plan.compaction)
        self.mover = Mover(self._caller("mover"), plan.faults.transfer)
        self.operator = Membership(self._caller("operator"), plan.faults.membership)
        self.nemesis = Nemesis(cluster, plan)

    def _caller(self, name: str) -> Caller:
        return Caller(self.cluster, self.records, name, self.world.fork(name))

    def _watcher(self, number: int) -> Watcher:
        caller = self._caller(f"w{number}")
        if number == 0:
            return Watcher(caller, b"\0", b"\0", prev=False)
        key, end = caller.random.choice([(b"k00", b""), (b"k", b"l"), (b"lease", b"leasf")])
        return Watcher(caller, key, end, prev=caller.random.random() < 0.5)

    @property
    def wrong(self) -> list[str]:
        return self.cluster.ledger.wrong + self.world.failures

    def _is_wrong(self) -> bool:
        """Asked after every event."""
        return bool(self.world.failures or self._complaints)

    def report(self) -> Report:
        """Do all of it."""
        try:
            with computing(MOST_COMPUTING):
                for step in (self._live, self._heal, self._judge):
                    if not self.wrong:
                        step()
        except (Exception, TooLong):
            self._complain(f"the simulation itself failed:\n{traceback.format_exc()}")
        records = self.records
        return Report(
            self.plan.seed,
            list(self.wrong),
            self.cluster.lines,
            self.world.events,
            len(records.operations),
            records.unknown,
            records.revision,
            fingerprint=crc32("\n".join(self.cluster.lines).encode(), self.world.events),
        )

    def _live(self) -> None:
        """Clients and faults."""
        plan, world = self.plan, self.world
        self.cluster.begin()
        world.run_until(15.0, lambda: bool(self.cluster.serving()) or self._is_wrong())
        actors: list[Actor] = [*self.clients, *self.watchers, *self.leases]
        for actor in actors:
            actor.start()
        if plan.compaction:
            self.compactor.start()
        if plan.faults.transfer:
            self.mover.start()
        if plan.faults.membership and plan.members > 1:
            self.operator.start()
        self.nemesis.start()
        world.run_until(world.now + plan.duration, self._is_wrong)

    # The end

    def _heal(self) -> None:
        """No more faults: all members are started, everybody hears everybody."""
        self.nemesis.stopped = self.operator.stopped = self.mover.stopped = True
        self.compactor.stopped = True
        cluster = self.cluster
        cluster.trace("healing")
        cluster.network.heal()
        cluster.network.weather.loss = cluster.network.weather.repeats = 0.0
        cluster.clients.cut_off.clear()
        for member in cluster.members:
            member.disk.slowness = 1.0
            member.disk.fail_after(None)
            if member.alive and member.process is not None:
                member.process.resume()
            cluster.restart(member)
        self._wait(self._is_healed)
        if not self._is_healed():
            self._complain(f"no recovery {HEALING} s after all has healed: {self._where()}")
        actors: list[Actor] = [*self.clients, *self.leases]
        for actor in actors:
            actor.stopped = True
        for watcher in self.watchers:
            watcher.settle()
        self._wait(self._is_calm)
        if not self._is_calm():
            self._complain(f"no calm {HEALING} s after the last request: {self._where()}")

    def _wait(self, until: Callable[[], bool]) -> None:
        """Let time pass until something holds, or for as long as that may take. It is not asked
        after every event, since it looks at all members."""
        world, asked = self.world, 0.0

        def stop() -> bool:
            nonlocal asked
            if world.now < asked + LOOK_INTERVAL:
                return self._is_wrong()
            asked = world.now
            return until() or self._is_wrong()

        world.run_until(world.now + HEALING, stop)

    def _is_healed(self) -> bool:
        """There is a leader, every member serves, and nobody is left over from a change."""
        cluster = self.cluster
        self._retire_removed()
        self._adopt_orphans()
        leader = cluster.leader()
        if leader is None or leader.server is None:
            return False
        members = leader.server.cluster.members
        return len(cluster.serving()) == len(members) == len(cluster.members)

    def _retire_removed(self) -> None:
        for member in list(self.cluster.members):
            if member.id is not None and self.cluster.ledger.is_removed(member):
                self.cluster.retire(member)

    def _adopt_orphans(self) -> None:
        """Start those of whom their operator does not know whether they were added, if they were:
        there may be no leader without them."""
        urls = self.cluster.urls()
        for orphan in [each for each in self.cluster.orphans if each.url in urls]:
            self.cluster.orphans.remove(orphan)
            self.cluster.members.append(orphan)
            orphan.joins = True
            self.cluster.restart(orphan)

    def _is_calm(self) -> bool:
        """Everything is applied everywhere, committed to the backend, and told to who watches."""
        self._retire_removed()  # whose removal took longer than healing
        servers = [m.server for m in self.cluster.members if m.server is not None]
        late = len(servers) < len(self.cluster.members)  # added so late that it still starts
        if late or any(client.busy for client in self.clients):
            return False
        first = servers[0]
        for server in servers:
            if server.applier.index != first.applier.index or server.lessor._leases:
                return False
            if server.backend.pending_ops or server.compactions.running:
                return False
        return all(self._has_told(watcher.current, first.store.rev) for watcher in self.watchers)

    def _has_told(self, watch: Watch, revision: int) -> bool:
        return bool(watch.responses) and (watch.reached() >= revision or watch.start > revision)

    def _where(self) -> str:
        texts = []
        for member in self.cluster.members:
            server = member.server
            if server is None:
                texts.append(f"{member} has not started")
                continue
            raft = server.raft._node.raft
            texts.append(
                f"{member} {raft.state.label} term {raft.term} applied {server.applier.index}"
                f" commit {raft.log.committed} last {raft.log.last_index()}"
                f" serves {member.serves} leases {len(server.lessor._leases)}"
                f" pending {server.backend.pending_ops} compacting {server.compactions.running}"
            )
        texts += [
            f"watch {w.current.name} of {w.current.start} has {w.current.reached()}"
            for w in self.watchers
        ]
        busy = sum(client.busy > 0 for client in self.clients)
        return "; ".join(texts) + f"; {busy} clients wait"

    def _complain(self, text: str) -> None:
        if not self.wrong:
            self.cluster.ledger.complain(text)

    def _judge(self) -> None:
        """Every property that is one of the whole run."""
        cluster, book = self.cluster, self.cluster.ledger.book
        members = cluster.members
        watches = [watch for watcher in self.watchers for watch in watcher.watches]
        holds = [hold for client in self.leases for hold in client.holds]
        happened = verdicts.what_happened(book.records)
        findings = [
            *verdicts.has_all(members, self.records.acknowledged),
            *verdicts.equal_states(members),
            *judge(holds, book.revoked, self.plan.clock_drift),
            *verdicts.watch_violations(watches, happened, members),
            *verdicts.linearizability(self.records.operations, watches, happened),
        ]
        for finding in findings:
            cluster.ledger.complain(finding)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without a search for cycles meanwhile: it takes a sixth of the time, for a few megabytes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """The members' logs go nowhere."""
    log = shared()
    level, log.level = log.level, SILENT
    try:
        yield
    finally:
        log.level = level


@contextmanager
def _unraisable() -> Iterator[None]:
    """What ended in the middle is cleared away now, and complains of that."""
    hook: Any = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


__all__ = ["Process", "Report", "Run", "run"]
