"""What befalls a cluster: each disturbance comes, stays for a while, and is made good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from chaos.cluster import Cluster
from chaos.members import ChaosMember
from chaos.network import Network, both_ways
from chaos.replacing import replace
from support.rpc import DEFRAGMENT, Rpc

from kvorum.pb import etcdserverpb as pb

POINTS: Final = (
    "raftBeforeSave",
    "raftAfterSave",
    "raftBeforeLeaderSend",
    "raftBeforeFollowerSend",
    "raftBeforeAdvance",
    "raftBeforeSaveSnap",
    "raftAfterSaveSnap",
    "raftBeforeApplySnap",
    "raftAfterApplySnap",
    "walBeforeSync",
    "walAfterSync",
    "beforeCommit",
    "afterCommit",
    "beforeApplyOneEntryNormal",
    "applyBeforeOpenSnapshot",
    "applyAfterOpenSnapshot",
    "beforeSendWatchResponse",
)

MOVE_LEADER: Final = Rpc(
    "/etcdserverpb.Maintenance/MoveLeader", pb.MoveLeaderRequest, pb.MoveLeaderResponse
)
Disturbance = Callable[["Nemesis"], Awaitable[None]]


class Nemesis:
    """Disturbs a cluster and makes it good again, as chance has it."""

    def __init__(
        self,
        cluster: Cluster,
        chance: Random,
        kinds: dict[str, Disturbance],
        hold: tuple[float, float] = (0.5, 4.0),
        may_kill: Callable[[ChaosMember], bool] = lambda _: True,
    ) -> None:
        self.cluster = cluster
        self.chance = chance
        self.kinds = kinds
        self.may_kill = may_kill
        self.story: list[str] = []
        """What was done, in words."""
        self._hold = hold
        self._left: list[str] = []

    @property
    def network(self) -> Network:
        assert self.cluster.network is not None
        return self.cluster.network

    def tell(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        self.story.append(f"{now:.2f} {text}")

    async def strike(self) -> str:
        """Do one thing, and take it back; its name. Every kind comes before one comes again."""
        if not self._left:
            self._left = sorted(self.kinds)
            self.chance.shuffle(self._left)
        name = self._left.pop()
        self.tell(name)
        await self.kinds[name](self)
        await self.restore()
        self.tell("made good")
        return name

    async def hold(self, factor: float = 1.0) -> None:
        await asyncio.sleep(self.chance.uniform(*self._hold) * factor)

    async def restore(self) -> None:
        """The network is whole, and all members run and speak with each other."""
        if self.cluster.network is not None:
            self.cluster.network.heal()
        for member in self.cluster.all:
            if member.paused:
                member.resume()
        for member in self.cluster.all:
            if not member.running:
                member.spawn()
        await self.cluster.started(30.0)

    async def leader(self) -> ChaosMember:
        await self.cluster.settled(20.0)
        return await self.cluster.leader() or self.chance.choice(self.cluster.all)

    async def followers(self) -> list[ChaosMember]:
        leader = await self.leader()
        others = [member for member in self.cluster.all if member is not leader]
        self.chance.shuffle(others)
        return others

    def numbers(self) -> list[int]:
        return [member.number for member in self.cluster.all]

    def others(self, member: ChaosMember) -> list[int]:
        return [number for number in self.numbers() if number != member.number]

    def end(self, member: ChaosMember) -> None:
        self.tell(f"{member.name} is killed" if self.may_kill(member) else f"{member.name} stops")
        if self.may_kill(member):
            member.crash()
        else:
            member.stop()


# Processes


async def kill_leader(nemesis: Nemesis) -> None:
    nemesis.end(await nemesis.leader())
    await nemesis.hold()


async def kill_follower(nemesis: Nemesis) -> None:
    nemesis.end((await nemesis.followers())[0])
    await nemesis.hold()


async def kill_most(nemesis: Nemesis) -> None:
    """All but one."""
    spared = nemesis.chance.choice(nemesis.cluster.all)
    for member in nemesis.cluster.all:
        if member is not spared:
            nemesis.end(member)
    await nemesis.hold(0.5)


async def kill_all(nemesis: Nemesis) -> None:
    for member in nemesis.cluster.all:
        nemesis.end(member)


async def kill_again_and_again(nemesis: Nemesis) -> None:
    """One that has no peace to catch up."""
    (victim, *_) = await nemesis.followers()
    for _ in range(3):
        nemesis.end(victim)
        victim.spawn()
        await asyncio.sleep(nemesis.chance.uniform(0.1, 1.0))


async def pause_leader(nemesis: Nemesis) -> None:
    leader = await nemesis.leader()
    nemesis.tell(f"{leader.name} stands still")
    leader.pause()
    await nemesis.hold()


async def pause_follower(nemesis: Nemesis) -> None:
    (victim, *_) = await nemesis.followers()
    victim.pause()
    await nemesis.hold()


async def stutter(nemesis: Nemesis) -> None:
    """Everybody stands still for moments, as on a machine that is overcommitted."""
    for _ in range(6):
        victim = nemesis.chance.choice(nemesis.cluster.all)
        victim.pause()
        await asyncio.sleep(nemesis.chance.uniform(0.05, 0.5))
        victim.resume()


async def panic(nemesis: Nemesis) -> None:
    """Somebody dies at a failpoint, if it comes by there."""
    victim = nemesis.chance.choice(nemesis.cluster.all)
    point = nemesis.chance.choice(POINTS)
    if await asyncio.to_thread(victim.set_failpoint, point, "panic"):
        nemesis.tell(f"{victim.name} is to panic at {point}")
        await nemesis.hold(0.5)
        if victim.running:
            await asyncio.to_thread(victim.set_failpoint, point, "off")
        else:
            nemesis.tell(f"{victim.name} has")


async def move_leader(nemesis: Nemesis) -> None:
    """The leader hands over."""
    leader = await nemesis.leader()
    (heir, *_) = await nemesis.followers()
    await leader.ask(MOVE_LEADER, timeout=3.0, targetID=nemesis.cluster.ids.get(heir.name, 0))
    nemesis.tell(f"from {leader.name} to {heir.name}")
    await nemesis.hold(0.2)


async def replace_follower(nemesis: Nemesis) -> None:
    """It loses its disk, and comes back as another member in its place."""
    (victim, *_) = await nemesis.followers()
    nemesis.tell(f"{victim.name} is removed, and joins again")
    await replace(nemesis.cluster, victim, victim.binary)


async def defragment(nemesis: Nemesis) -> None:
    victim = nemesis.chance.choice(nemesis.cluster.all)
    await victim.ask(DEFRAGMENT, timeout=10.0)


# The network


async def isolate_leader(nemesis: Nemesis) -> None:
    leader = await nemesis.leader()
    nemesis.tell(f"{leader.name} is cut off")
    nemesis.network.disturb(cut=both_ways(leader.number, *nemesis.others(leader)))
    await nemesis.hold()


async def isolate_follower(nemesis: Nemesis) -> None:
    (victim, *_) = await nemesis.followers()
    nemesis.network.disturb(cut=both_ways(victim.number, *nemesis.others(victim)))
    await nemesis.hold()


async def isolate_all(nemesis: Nemesis) -> None:
    numbers = nemesis.numbers()
    nemesis.network.disturb(cut={(a, b) for a in numbers for b in numbers})
    await nemesis.hold()


async def mute_leader(nemesis: Nemesis) -> None:
    """It hears the others, they do not hear it."""
    leader = await nemesis.leader()
    nemesis.network.disturb(cut={(leader.number, other) for other in nemesis.others(leader)})
    await nemesis.hold()


async def deafen_leader(nemesis: Nemesis) -> None:
    """They hear it, it does not hear them."""
    leader = await nemesis.leader()
    nemesis.network.disturb(cut={(other, leader.number) for other in nemesis.others(leader)})
    await nemesis.hold()


async def deafen_follower(nemesis: Nemesis) -> None:
    (victim, *_) = await nemesis.followers()
    nemesis.network.disturb(cut={(other, victim.number) for other in nemesis.others(victim)})
    await nemesis.hold()


async def bridge(nemesis: Nemesis) -> None:
    """One that both others hear, who do not hear each other."""
    one, *rest = nemesis.numbers()
    middle = nemesis.chance.choice([one, *rest])
    sides = [number for number in [one, *rest] if number != middle]
    nemesis.network.disturb(cut={(a, b) for a in sides for b in sides if a != b})
    await nemesis.hold()


async def ring(nemesis: Nemesis) -> None:
    """Each hears only the next."""
    numbers = nemesis.numbers()
    count = len(numbers)
    nemesis.network.disturb(cut={(numbers[n], numbers[(n + 1) % count]) for n in range(count)})
    await nemesis.hold()


async def flap(nemesis: Nemesis) -> None:
    """Cut and whole in quick turns."""
    for _ in range(6):
        victim = nemesis.chance.choice(nemesis.cluster.all)
        nemesis.network.disturb(cut=both_ways(victim.number, *nemesis.others(victim)))
        await asyncio.sleep(nemesis.chance.uniform(0.05, 0.6))
        nemesis.network.heal()
        await asyncio.sleep(nemesis.chance.uniform(0.0, 0.3))


async def slow(nemesis: Nemesis) -> None:
    most = nemesis.chance.choice([0.02, 0.1, 0.3])
    nemesis.network.disturb(delay=(most / 4, most))
    await nemesis.hold()


async def lossy(nemesis: Nemesis) -> None:
    nemesis.network.disturb(loss=nemesis.chance.choice([0.02, 0.1, 0.3]))
    await nemesis.hold()


async def cut_and_kill(nemesis: Nemesis) -> None:
    """The leader is cut off, and one of those who elect another dies."""
    leader = await nemesis.leader()
    nemesis.network.disturb(cut=both_ways(leader.number, *nemesis.others(leader)))
    await nemesis.hold(0.7)
    victim = nemesis.chance.choice([m for m in nemesis.cluster.all if m is not leader])
    nemesis.end(victim)
    await nemesis.hold(0.3)


PROCESSES: Final[dict[str, Disturbance]] = {
    "kill the leader": kill_leader,
    "kill a follower": kill_follower,
    "kill all but one": kill_most,
    "kill all": kill_all,
    "kill one again and again": kill_again_and_again,
    "pause the leader": pause_leader,
    "pause a follower": pause_follower,
    "stutter": stutter,
    "panic": panic,
    "panic again": panic,
    "move the leader": move_leader,
    "replace a follower": replace_follower,
    "defragment": defragment,
}
NETWORK: Final[dict[str, Disturbance]] = {
    "isolate the leader": isolate_leader,
    "isolate a follower": isolate_follower,
    "isolate all": isolate_all,
    "mute the leader": mute_leader,
    "deafen the leader": deafen_leader,
    "deafen a follower": deafen_follower,
    "bridge": bridge,
    "ring": ring,
    "flap": flap,
    "slow": slow,
    "lossy": lossy,
    "cut and kill": cut_and_kill,
}
