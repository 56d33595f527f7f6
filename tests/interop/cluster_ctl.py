"""Clusters of real members, and etcdctl's commands to one or all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop.ctl import Output, Run, Side
from support.member import Member, MemberFactory
from support.rpc import HASH_KV, MEMBER_LIST, RANGE, STATUS, Client, Reply, Rpc
from support.wait import wait_for

from kvorum.pb import etcdserverpb as pb

SETTLE_SECONDS = 30.0
MOVE_LEADER = "/etcdserverpb.Maintenance/MoveLeader"

_PASSING = (b"unhealthy cluster", b"not enough started members", b"in sync with leader")
"""Refusals that members give until they have been together for a while."""


@dataclass(slots=True)
class ClusterSide(Side):
    """A cluster under test. A command is put to all of its members, or, if it begins with ``@``
    and names (``@a,b``), to those."""

    members: dict[str, Member] = field(default_factory=dict)
    binary: Path = Path()
    make: MemberFactory | None = None

    # Members

    def plan(self, name: str, binary: Path | None = None) -> Member:
        """A member, not started."""
        assert self.make is not None
        member = self.members[name] = self.make(
            binary or self.binary, folder=self.folder / name, name=name
        )
        self._known.append((member.endpoint, f"<{name} client>"))
        self._known.append((f"127.0.0.1:{member.peer_port}", f"<{name} peer>"))
        return member

    def peer_url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.members[name].peer_port}"

    def begin(self, names: str, **binaries: Path) -> None:
        """Start a new cluster of these members, some of them with another binary."""
        for name in names:
            self.plan(name, binaries.get(name))
        initial = ",".join(f"{name}={self.peer_url(name)}" for name in names)
        for name in names:
            self.members[name].flags.append(f"--initial-cluster={initial}")
            self.members[name].spawn()
        self.member = self.members[names[0]]

    def wait_ready(self) -> None:
        for member in self.members.values():
            if member.running:
                member.wait_ready()
        self.learn_ids()

    def wait_ready_learner(self, name: str) -> None:
        """A learner is not healthy, but it can be asked for its status."""
        wait_for(lambda: self._has_leader(name), f"{name} to follow a leader")

    def _has_leader(self, name: str) -> bool:
        with Client(self.members[name].endpoint) as client:
            reply = client.raw(STATUS.path, b"", timeout=2.0)
        return reply.ok and bool(STATUS.response.FromString(reply.body).leader)

    def join(self, name: str) -> None:
        """Start a member that has been added."""
        known = [other for other in self.members if self.members[other].running or other == name]
        initial = ",".join(f"{other}={self.peer_url(other)}" for other in known)
        member = self.members[name]
        member.flags += [f"--initial-cluster={initial}", "--initial-cluster-state=existing"]
        member.spawn()

    def wipe(self, name: str) -> None:
        """A member loses its disk."""
        self.members[name].kill()
        shutil.rmtree(self.members[name].data_dir)
        del self.members[name]

    # What is known of them

    def learn_ids(self) -> None:
        for name, member in self.members.items():
            if member.running:
                with Client(member.endpoint) as client:
                    header = client.call(STATUS).header
                self._remember(name, header.member_id)
                self._remember("cluster", header.cluster_id)

    def ids(self) -> dict[str, int]:
        """Of the members that have started once."""
        members = self._ask(MEMBER_LIST, linearizable=True).members
        return {member.name: member.ID for member in members}

    def leader(self) -> int:
        return int(self._ask(STATUS).leader)

    def _ask(self, rpc: Rpc, **fields: Any) -> Any:
        """A reply of the first member; an election that is under way passes."""
        request = rpc.request(**fields).SerializeToString()

        def answer() -> Reply | None:
            with Client(self.member.endpoint) as client:
                reply = client.raw(rpc.path, request)
            return reply if reply.ok else None

        reply = wait_for(answer, f"an answer to {rpc.path}", timeout=SETTLE_SECONDS)
        return rpc.response.FromString(reply.body)

    def lead(self, name: str) -> None:
        """Have a member lead."""
        wanted = self.ids()[name]
        wait_for(lambda: self._move(wanted) or self.leader() == wanted, f"{name} to lead")

    def _move(self, wanted: int) -> bool:
        leader = self.leader()
        names = {number: name for name, number in self.ids().items()}
        if leader == wanted or leader not in names:
            return False
        request = pb.MoveLeaderRequest(targetID=wanted).SerializeToString()
        with Client(self.members[names[leader]].endpoint) as client:
            return client.raw(MOVE_LEADER, request).ok and self.leader() == wanted

    def same_state(self) -> bool:
        """Whether all members that run hold the same."""
        revision = int(self._ask(RANGE, key=b"x").header.revision)
        hashes = {
            self._hash(member, revision) for member in self.members.values() if member.running
        }
        return len(hashes) == 1 and None not in hashes

    def _hash(self, member: Member, revision: int) -> int | None:
        request = pb.HashKVRequest(revision=revision).SerializeToString()
        with Client(member.endpoint).wait_connected() as client:
            reply: Reply = client.raw(HASH_KV.path, request)
        return int(HASH_KV.response.FromString(reply.body).hash) if reply.ok else None

    # Commands

    def command(self, args: Sequence[str]) -> list[str]:
        names: Sequence[str] = [name for name, member in self.members.items() if member.running]
        if args[0].startswith("@"):
            names, args = args[0][1:].split(","), args[1:]
        endpoints = ",".join(self.members[name].endpoint for name in names)
        filling = {f"{name}_url": self.peer_url(name) for name in self.members} | self.saved
        filled = [arg.format_map(filling) for arg in args]
        return [str(self.etcdctl), f"--endpoints={endpoints}", *filled]

    def settle(self, step: Run) -> Output:
        """The output of a command, again and again until its refusal is none that passes."""

        def lasting() -> Output | None:
            ended = self._run(step)
            passing = any(text in ended[2] for text in _PASSING)
            return None if passing else self._finish(step, ended)

        return wait_for(lasting, f"an end of {step.args}", timeout=SETTLE_SECONDS)


class ClusterPair:
    """The same done to two clusters, with the same answers."""

    def __init__(self, old: ClusterSide, new: ClusterSide) -> None:
        self.sides = (old, new)
        self._pool = ThreadPoolExecutor(2)

    def each(self, work: Callable[[ClusterSide], Any]) -> tuple[Any, Any]:
        """On both at once."""
        old, new = self._pool.map(work, self.sides)
        return old, new

    def play(self, *steps: Run) -> None:
        for step in steps:
            old, new = self.each(lambda side, step=step: side.play(step))  # type: ignore[misc]
            assert new == old, f"etcdctl {' '.join(step.args)}"

    def settle(self, step: Run) -> None:
        """A command that may have to wait until the members trust each other."""
        old, new = self.each(lambda side: side.settle(step))
        assert new == old, f"etcdctl {' '.join(step.args)}"
