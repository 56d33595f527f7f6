"""What goes wrong, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvorum.types import MemberID

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.member import Member
    from sim.plan import Plan

SHAPES: Final = ("isolate", "halves", "one way", "bridge", "deaf")


class Nemesis:
    """Lets the faults of a plan happen at random moments until it is stopped."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.stopped = False
        self._cluster = cluster
        self._random = cluster.world.fork("nemesis")
        faults = plan.faults
        self._kinds: list[tuple[float, Callable[[], None]]] = [
            (faults.kill, lambda: self._crash(power_cut=False)),
            (faults.power, lambda: self._crash(power_cut=True)),
            (faults.blackout, self._blackout),
            (faults.pause, self._pause),
            (faults.partition, self._partition),
            (faults.slow_link, self._slow_link),
            (faults.slow_disk, self._slow_disk),
            (faults.client_cut, self._cut_client),
        ]

    def start(self) -> None:
        for interval, fault in self._kinds:
            if interval:
                self._plan(interval, fault)

    def _plan(self, interval: float, fault: Callable[[], None]) -> None:
        delay = self._random.expovariate(1 / interval)
        self._cluster.world.after(delay, self._strike, interval, fault)

    def _strike(self, interval: float, fault: Callable[[], None]) -> None:
        if not self.stopped:
            fault()
            self._plan(interval, fault)

    def _victim(self) -> Member | None:
        """A member; the leader more often than the others."""
        alive = self._cluster.alive()
        leader = self._cluster.leader()
        if leader is not None and self._random.random() < 0.3:
            return leader
        return self._random.choice(alive) if alive else None

    def _spell(self) -> float:
        """Seconds for which something lasts: mostly short, sometimes longer than an election."""
        return self._random.choice([0.05, 0.3, 1.0, 3.0]) * self._random.uniform(0.5, 1.5)

    # Faults

    def _crash(self, *, power_cut: bool) -> None:
        victim = self._victim()
        if victim is not None:
            self._cluster.crash(victim, power_cut=power_cut, down_for=self._spell())

    def _blackout(self) -> None:
        """All at once, as when the power of the building goes."""
        power_cut = self._random.random() < 0.8
        for member in self._cluster.alive():
            self._cluster.crash(member, power_cut=power_cut, down_for=self._spell())

    def _pause(self) -> None:
        victim = self._victim()
        if victim is not None and victim.process is not None:
            spell = self._spell()
            self._cluster.trace(f"{victim} is paused for {spell:.2f} s")
            victim.process.pause(spell)

    def _partition(self) -> None:
        members = [m.id for m in self._cluster.members if m.id is not None]
        if len(members) < 2:
            return
        self._random.shuffle(members)
        shape = self._random.choice(SHAPES)
        before = set(self._cluster.network.cuts)
        self._cut(shape, members)
        cuts = self._cluster.network.cuts - before
        spell = self._spell()
        self._cluster.trace(f"partition for {spell:.2f} s ({shape}): {self._show(cuts)}")
        self._cluster.world.after(spell, self._heal, cuts)

    def _cut(self, shape: str, members: list[MemberID]) -> None:
        network, first = self._cluster.network, members[:1]
        half = len(members) // 2
        if shape == "isolate":
            network.cut(first, members)
            network.cut(members, first)
        elif shape == "halves":
            network.cut(members[:half], members[half:])
            network.cut(members[half:], members[:half])
        elif shape == "one way":
            network.cut(first, members)
        elif shape == "deaf":
            network.cut(members, first)
        else:  # two halves that both speak with one member
            network.cut(members[1 : half + 1], members[half + 1 :])
            network.cut(members[half + 1 :], members[1 : half + 1])

    def _show(self, cuts: set[tuple[MemberID, MemberID]]) -> str:
        names = {m.id: m.name for m in self._cluster.members}
        return " ".join(sorted(f"{names.get(a)}>{names.get(b)}" for a, b in cuts))

    def _heal(self, cuts: set[tuple[MemberID, MemberID]]) -> None:
        self._cluster.network.cuts -= cuts
        self._cluster.trace("the partition heals")

    def _slow_link(self) -> None:
        network = self._cluster.network
        if not network.links:
            return
        pair = self._random.choice(sorted(network.links))
        link = network.links[pair]
        link.extra_delay = self._random.choice([0.05, 0.3, 1.0])
        self._cluster.world.after(self._spell(), lambda: setattr(link, "extra_delay", 0.0))
        self._cluster.trace(f"slow link {self._show({pair})}: {link.extra_delay} s")

    def _slow_disk(self) -> None:
        victim = self._victim()
        if victim is not None:
            disk = victim.disk
            disk.slowness = self._random.choice([10.0, 100.0, 400.0])
            self._cluster.world.after(self._spell(), lambda: setattr(disk, "slowness", 1.0))
            self._cluster.trace(f"{victim} has a disk that is {disk.slowness:.0f} times slower")

    def _cut_client(self) -> None:
        """Clients lose the way to a member, in the middle of their calls."""
        victim = self._victim()
        if victim is not None and victim.process is not None:
            name = victim.process.name
            self._cluster.clients.cut_off.add(name)
            self._cluster.trace(f"clients cannot reach {victim}")
            self._cluster.world.after(self._spell(), self._cluster.clients.cut_off.discard, name)
