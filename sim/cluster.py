"""All that a run consists of, and what can be done to it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from kvorum.types import MemberID
from sim.clientnet import ClientNet
from sim.ledger import Ledger
from sim.member import Member
from sim.network import Network
from sim.plan import Plan
from sim.process import Clock, Process
from sim.system import System
from sim.world import World


class Cluster:
    """The members that there were, are, and will be; the network; the judges.

    ``gone`` are those that were removed, ``orphans`` those of which nobody knows yet whether they
    were added.
    """

    def __init__(self, world: World, system: System, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.random: Random = world.fork("cluster")
        self.network = Network(world, world.fork("network"), plan.weather)
        self.clients = ClientNet(world, world.fork("clientnet"))
        self.ledger = Ledger(self)
        self.members: list[Member] = []
        self.gone: list[Member] = []
        self.orphans: list[Member] = []
        self.lines: list[str] = []
        self.listen: Callable[[str], None] = lambda line: None
        self._system = system
        self._numbers = 0
        self._restarts: dict[str, Any] = {}
        self.network.note = self.trace
        self.network.watch = self.ledger.sent
        world.after_turn = self.ledger.after_turn

    def trace(self, what: str) -> None:
        line = f"{self.world.now:10.6f}  {what}"
        self.lines.append(line)
        self.listen(line)

    # Members

    def new_member(self) -> Member:
        """A machine with an empty disk."""
        self._numbers += 1
        random, plan = self.random, self.plan
        offset = random.uniform(-plan.clock_offset, plan.clock_offset)
        drift = random.uniform(-plan.clock_drift, plan.clock_drift)
        settings = plan.settings()
        clock = Clock(1000.0 + offset, drift)
        member = Member(self.world, self._system, self.network, self._numbers, clock, settings)
        member.on_boot = self.ledger.booted
        member.on_failure = self._failed
        return member

    def begin(self) -> None:
        """Start a new cluster."""
        first = [self.new_member() for _ in range(self.plan.members)]
        self.members += first
        for member in first:
            member.initial = first
            member.start()

    def alive(self) -> list[Member]:
        return [member for member in self.members if member.alive]

    def serving(self) -> list[Member]:
        return [member for member in self.members if member.serves]

    def leader(self) -> Member | None:
        """Of the highest term, if several think so."""
        leaders = [m for m in self.serving() if m.server is not None and m.server.raft.is_leader]
        return max(leaders, key=lambda m: m.server.raft.term, default=None)  # type: ignore[union-attr]

    def by_id(self, member: MemberID) -> Member | None:
        return next((each for each in self.members if each.id == member), None)

    def urls(self) -> set[str]:
        """Of the members that the cluster has, as the one knows that has applied most: there may
        be no leader before others are started."""
        servers = [m.server for m in self.members if m.alive and m.server is not None]
        newest = max(servers, key=lambda server: server.applier.index, default=None)
        members = newest.cluster.members.values() if newest is not None else ()
        return {url for member in members for url in member.peer_urls}

    def listed(self, member: Member) -> list[Member]:
        """The members that the cluster has, as far as is known, and ``member``."""
        urls = self.urls()
        if not urls:
            return member.initial
        known = [*self.members, *self.orphans, *self.gone]
        return [each for each in known if each.url in urls or each is member]

    # Ends and starts

    def crash(self, member: Member, *, power_cut: bool, down_for: float) -> None:
        """End a member's process, and start it again after a while."""
        if not member.alive:
            return
        assert member.process is not None
        self.trace(f"{member} {'loses power' if power_cut else 'is killed'} for {down_for:.2f} s")
        process = member.process
        member.end(power_cut=power_cut)
        self.ledger.ended(member)
        self.clients.lose(process)
        self.world.after(down_for, self.restart, member)

    def restart(self, member: Member) -> None:
        if member.alive or member not in self.members:
            return
        self.trace(f"{member} is started")
        if member.joins:
            member.initial = self.listed(member)
        member.start()

    def _failed(self, member: Member, error: BaseException) -> None:
        """A member says that it cannot go on, and its process ends."""
        process = member.process
        if process is None or not process.alive:
            return
        self.trace(f"{member} ends: {error!r}")
        if not self.ledger.may_fail(member, error):
            process.loop.report("the member failed", error)
        self.world.soon(self._end_failed, member, process)

    def _end_failed(self, member: Member, process: Process) -> None:
        if member.alive and member.process is process:
            member.end(power_cut=False)
            self.ledger.ended(member)
            self.clients.lose(process)
            if not self.ledger.is_removed(member):
                self.world.after(1.0, self.restart, member)

    def retire(self, member: Member) -> None:
        """A machine goes for good: its member was removed, or was never added."""
        self.trace(f"{member} is gone for good")
        if member in self.members:
            self.members.remove(member)
            self.gone.append(member)
        if member.alive:
            assert member.process is not None
            process = member.process
            member.end(power_cut=False)
            self.ledger.ended(member)
            self.clients.lose(process)
