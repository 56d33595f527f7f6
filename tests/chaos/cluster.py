"""A cluster under chaos: its members, its network, and what can be seen of it from outside."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chaos.members import ChaosMember
from chaos.network import Network
from support.binaries import etcd_version
from support.ports import free_port
from support.rpc import HASH_KV, RANGE, STATUS

HEARTBEAT = 0.1
ELECTION = 1.0
POLL = 0.02


@dataclass(frozen=True, slots=True)
class Settings:
    """What all members are told, each in the words of its release."""

    snapshot_count: int = 200
    catch_up: int = 50


def flags_for(binary: Path, settings: Settings) -> list[str]:
    return [
        f"--heartbeat-interval={HEARTBEAT * 1000:.0f}",
        f"--election-timeout={ELECTION * 1000:.0f}",
        f"--snapshot-count={settings.snapshot_count}",
        *([f"--snapshot-catchup-entries={settings.catch_up}"] if has_short_log(binary) else []),
        # Otherwise members may not come and go until all have been together for 5 s.
        "--strict-reconfig-check=false",
    ]


def has_short_log(binary: Path) -> bool:
    """Etcd 3.5.1 cannot be told to keep fewer than 5,000 entries."""
    return etcd_version(binary) >= (3, 6)


class Cluster:
    """Members by name, in the order of their numbers."""

    def __init__(
        self,
        folder: Path,
        binaries: Mapping[str, Path],
        network: Network | None,
        settings: Settings,
        log_dir: str | None = None,
    ) -> None:
        self.folder = folder
        self.log_dir = Path(log_dir) if log_dir else None
        self.network = network
        self.settings = settings
        self.members: dict[str, ChaosMember] = {}
        self.ids: dict[str, int] = {}
        for name, binary in binaries.items():
            self.plan(name, binary)
        initial = self.initial(*binaries)
        for member in self.members.values():
            member.initial = initial

    def plan(self, name: str, binary: Path) -> ChaosMember:
        """A member that is not started yet."""
        number = len(self.members)
        place = self.network.places[number] if self.network else None
        member = ChaosMember(
            binary,
            self.folder / name,
            number=number,
            name=name,
            place=place,
            flags=flags_for(binary, self.settings),
        )
        member.watch_failpoints(free_port())
        self.members[name] = member
        return member

    def initial(self, *names: str) -> str:
        return ",".join(f"{name}={self.members[name].peer_url}" for name in names)

    @property
    def all(self) -> list[ChaosMember]:
        return list(self.members.values())

    @property
    def serving(self) -> list[ChaosMember]:
        return [member for member in self.all if member.serving]

    async def start(self) -> None:
        for member in self.all:
            member.spawn()
        await self.settled(30.0)

    async def close(self) -> None:
        for member in self.all:
            await member.close()
            if member.running:
                member.crash()
            self._keep_log(member)
            shutil.rmtree(member.data_dir, ignore_errors=True)
        if self.network is not None:
            self.network.close()

    def _keep_log(self, member: ChaosMember) -> None:
        if self.log_dir is not None and member.log_path.exists():
            self.log_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(member.log_path, self.log_dir / f"chaos-{member.name}.log")

    # What is seen of it

    async def views(self) -> dict[str, tuple[int, int, int]]:
        """Of each member that answers: its id, whom it takes for the leader, and its term."""
        members = self.all
        replies = await asyncio.gather(*(member.ask(STATUS) for member in members))
        found = {}
        for member, reply in zip(members, replies, strict=True):
            if reply is not None:
                self.ids[member.name] = reply.header.member_id
                found[member.name] = (reply.header.member_id, reply.leader, reply.raftTerm)
        return found

    async def leader(self) -> ChaosMember | None:
        """The one that most members follow, with itself."""
        views = await self.views()
        by_id = {identity: name for name, (identity, _, _) in views.items()}
        for identity, leader, term in views.values():
            if leader == identity:
                votes = sum((led, at) == (identity, term) for _, led, at in views.values())
                if 2 * votes > len(self.all):
                    return self.members[by_id[identity]]
        return None

    async def started(self, seconds: float) -> None:
        """Wait until all members that were started have come so far that they speak with peers."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not all(member.speaks_with_peers() for member in self.all):
            self.check_alive()
            assert loop.time() < end, f"not started within {seconds} s: {await self.describe()}"
            await asyncio.sleep(POLL)

    async def settled(self, seconds: float) -> float:
        """Wait until a majority follows a leader; how long that took."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        while await self.leader() is None:
            self.check_alive()
            if loop.time() - start > seconds:
                raise AssertionError(f"no leader within {seconds} s: {await self.describe()}")
            await asyncio.sleep(POLL)
        return loop.time() - start

    def check_alive(self) -> None:
        for member in self.all:
            if member.process is not None and not member.running and member.exit_code not in (-9,):
                raise AssertionError(
                    f"{member.name} ended with {member.exit_code}:\n{member.log_tail(40)}"
                )

    async def describe(self) -> str:
        views = await self.views()
        lines = []
        for member in self.all:
            state = "runs" if member.serving else "paused" if member.paused else "is down"
            if member.name in views:
                identity, leader, term = views[member.name]
                state = f"{identity:x} follows {leader:x} in term {term}"
            lines.append(f"{member.name} {state}")
        return "; ".join(lines)

    def log_tails(self, lines: int = 60) -> str:
        return "\n".join(f"== {m.name}\n{m.log_tail(lines)}" for m in self.all)

    async def revision(self) -> int:
        """By a linearizable read."""
        for _ in range(200):
            for member in self.serving:
                reply = await member.ask(RANGE, timeout=2.0, key=b"k")
                if reply is not None:
                    return int(reply.header.revision)
            await asyncio.sleep(POLL)
        raise AssertionError(f"nobody answers: {await self.describe()}")

    async def hashes(self, revision: int, seconds: float) -> dict[str, tuple[int, int]]:
        """HashKV of every member at a revision, with the revision compacted, once all have it.

        They can be compared only if all were asked after the same compaction, and one may be under
        way. If it is not everywhere in time, they are returned as they are.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        found: dict[str, tuple[int, int]] = {}
        while len(found) < len(self.all) or len({at for _, at in found.values()}) > 1:
            for member in self.all:
                reply = await member.ask(HASH_KV, timeout=2.0, revision=revision)
                if reply is not None:
                    found[member.name] = (reply.hash, reply.compact_revision)
            if loop.time() > end:
                break
            await asyncio.sleep(POLL)
        missing = set(self.members) - set(found)
        assert not missing, f"{missing} have not reached {revision}: {await self.describe()}"
        return found
