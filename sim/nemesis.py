"""What goes wrong, and when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from kvorum.raft.types import Message, MsgType
from kvorum.types import MemberID

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.member import Member
    from sim.plan import Plan

Cuts = set[tuple[MemberID, MemberID]]

USURPED: Final = 4.0
"""Seconds within which there has to be another leader."""
AMBUSHED: Final = (
    MsgType.VOTE_RESP,
    MsgType.VOTE_RESP,
    MsgType.VOTE,
    MsgType.APP,
    MsgType.APP_RESP,
    MsgType.SNAP,
    MsgType.PROP,
    MsgType.READ_INDEX_RESP,
)
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
            (faults.disk_error, self._disk_error),
            (faults.client_cut, self._cut_client),
            (faults.ambush, self._ambush),
            (faults.usurp, self._usurp),
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

    def _ambush(self) -> None:
        """Whoever sends the next message of a kind ends right after: between a promise and what
        has to come before it there is not much time."""
        self._lie_in_wait(self._random.choice(AMBUSHED))

    def _lie_in_wait(self, kind: MsgType, only: MemberID | None = None) -> None:
        cluster, network = self._cluster, self._cluster.network

        def spring(message: Message) -> None:
            victim = cluster.by_id(message.from_)
            if message.type is not kind or victim is None or self.stopped:
                return
            if only is not None and message.from_ != only:
                return
            network.trap = None
            cluster.trace(f"{victim} has just sent {kind.label}")
            power_cut = self._random.random() < 0.8
            crash = partial(cluster.crash, power_cut=power_cut, down_for=self._spell())
            cluster.world.after(self._random.choice([0.0, 0.0, 0.001]), crash, victim)

        network.trap = spring

    def _usurp(self) -> None:
        """The leader goes on hearing clients, and is heard by nobody, until there is another one.
        Then all are one again, and the new leader or the old one ends right after."""
        network, leader = self._cluster.network, self._cluster.leader()
        if leader is None or leader.id is None or len(self._cluster.members) < 3:
            return
        before = set(network.cuts)
        others = [m.id for m in self._cluster.members if m.id is not None]
        network.cut([leader.id], others)
        deaf = self._random.random() < 0.5
        if deaf:  # it does not even hear of another leader
            network.cut(others, [leader.id])
        cuts = network.cuts - before
        self._cluster.trace(f"{leader} is mute{' and deaf' if deaf else ''}")
        if self._random.random() < 0.4:
            self._slow(leader, 400.0)
        self._await_usurper(leader, cuts, self._cluster.world.now + USURPED)

    def _await_usurper(self, old: Member, cuts: Cuts, deadline: float) -> None:
        cluster, world = self._cluster, self._cluster.world
        new = cluster.leader()
        if (new is None or new is old) and world.now < deadline and not self.stopped:
            world.after(0.01, self._await_usurper, old, cuts, deadline)
            return
        if self._random.random() < 0.5:  # for a while there are two that think they lead
            world.after(self._random.uniform(0.1, 1.0), self._heal, cuts)
            return
        self._heal(cuts)
        if self.stopped or new is None or new is old:
            return
        if self._random.random() < 0.5:
            crash = partial(cluster.crash, power_cut=True, down_for=self._spell())
            world.after(self._random.choice([0.0, 0.005, 0.02]), crash, new)
        if old.id is not None and self._random.random() < 0.5:
            self._lie_in_wait(MsgType.APP_RESP, only=old.id)

    def _pause(self) -> None:
        victim = self._victim()
        spell = self._spell()
        if self._random.random() < 0.3:  # a leader that sleeps until long after it was replaced
            victim, spell = self._cluster.leader(), self._random.uniform(3.0, 6.0)
        if victim is not None and victim.process is not None:
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
        self._cluster.network.join(cuts)
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
            self._slow(victim, self._random.choice([10.0, 100.0, 400.0]))

    def _slow(self, victim: Member, times: float) -> None:
        victim.disk.slowness = times
        self._cluster.world.after(self._spell(), setattr, victim.disk, "slowness", 1.0)
        self._cluster.trace(f"{victim} has a disk that is {times:.0f} times slower")

    def _disk_error(self) -> None:
        """A disk refuses one change, now or a little later."""
        victim = self._victim()
        if victim is not None:
            victim.disk.fail_after(self._random.choice([0, 0, 1, 2, 5, 20]))
            self._cluster.trace(f"{victim} has a disk that is about to fail")

    def _cut_client(self) -> None:
        """Clients lose the way to a member, in the middle of their calls."""
        victim = self._victim()
        if victim is not None and victim.process is not None:
            name = victim.process.name
            self._cluster.clients.cut_off.add(name)
            self._cluster.trace(f"clients cannot reach {victim}")
            self._cluster.world.after(self._spell(), self._cluster.clients.cut_off.discard, name)
