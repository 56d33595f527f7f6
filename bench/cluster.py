"""Three members of one program on this machine, and what is done with them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import Message

from bench.client import STATUS, Client, RpcError
from bench.members import POLL, START_TIMEOUT, Member, Memory, Program
from bench.wire import LoadError
from kvorum.pb import etcdserverpb as pb

SIZE: Final = 3
FLAGS: Final = ("--heartbeat-interval=100", "--election-timeout=1000")
"""Of every member, so that failovers can be compared. Milliseconds."""

MEMBER_ADD: Final = "/etcdserverpb.Cluster/MemberAdd"
MEMBER_REMOVE: Final = "/etcdserverpb.Cluster/MemberRemove"
RETRY: Final = 0.05
"""Seconds between two attempts at a change of the members, which may be refused for a while."""

ReplyType = TypeVar("ReplyType", bound=Message)


class Cluster:
    """A cluster of three. ``port`` is that of the leader, as of the last `settle`."""

    def __init__(self, program: Program, root: Path, flags: Sequence[str] = ()) -> None:
        self.program = program
        self._root = root
        self._flags = (*FLAGS, *flags)
        self._leader = 0
        self._learners = 0
        self.members = [self._member(f"m{number}") for number in range(SIZE)]
        for member in self.members:
            member.join(self.members, "new")

    def _member(self, name: str) -> Member:
        return Member(self.program, self._root / name, self._flags, name)

    @property
    def leader(self) -> Member:
        return self.members[self._leader]

    @property
    def followers(self) -> list[Member]:
        return [member for member in self.members if member is not self.leader]

    @property
    def port(self) -> int:
        return self.leader.port

    @property
    def ports(self) -> Sequence[int]:
        """Those of all members, the leader's first."""
        return [self.port, *(member.port for member in self.followers)]

    def start(self) -> float:
        """Start all; returns the seconds until each has answered a linearizable get."""
        began = time.perf_counter()
        for member in self.members:
            member.spawn()
        for member in self.members:
            member.wait()
        return time.perf_counter() - began

    def renew(self) -> None:
        """Begin again with nothing."""
        self.stop()
        for member in self.members:
            shutil.rmtree(member.data)
        self.start()
        self.settle()

    def settle(self) -> None:
        """Find the leader, and wait until all members have applied what it has."""
        self._leader = self._find_leader()
        for follower in self.followers:
            self.await_revision(follower)

    def _find_leader(self) -> int:
        deadline = time.perf_counter() + START_TIMEOUT
        while time.perf_counter() < deadline:
            for number, member in enumerate(self.members):
                status = status_of(member)
                if status.leader == status.header.member_id:
                    return number
            time.sleep(POLL)
        raise LoadError(f"{self.program.label} has no leader")

    def await_revision(self, member: Member) -> None:
        """Wait until a member has what the leader has now, and has gone no further away."""
        target = status_of(self.leader).header.revision
        deadline = time.perf_counter() + START_TIMEOUT
        while status_of(member).header.revision < target:
            if time.perf_counter() > deadline:
                raise LoadError(f"{member.name} of {self.program.label} does not catch up")
            time.sleep(POLL)

    def stop(self) -> float:
        """All at once; returns the seconds."""
        began = time.perf_counter()
        for member in self.members:
            member.stop()
        return time.perf_counter() - began

    def discard(self) -> None:
        for member in self.members:
            member.discard()
        shutil.rmtree(self._root, ignore_errors=True)

    def cpu_seconds(self) -> float:
        """Of all members together."""
        return sum(member.cpu_seconds() for member in self.members)

    def memory(self) -> Memory:
        """Of all members together; the peaks need not have been at one time."""
        parts = [member.memory() for member in self.members]
        return Memory(
            sum(part.resident for part in parts),
            sum(part.peak for part in parts),
            sum(part.anonymous for part in parts),
        )

    def add_learner(self) -> tuple[int, Member]:
        """Have a learner in the configuration, not started yet; its id, and the member."""
        learner = self._member(f"learner{self._learners}")
        self._learners += 1
        learner.join([*self.members, learner], "existing")
        request = pb.MemberAddRequest(peerURLs=[learner.peer_url], isLearner=True)
        reply = self._change(MEMBER_ADD, request, pb.MemberAddResponse)
        return int(reply.member.ID), learner

    def remove(self, member: int) -> None:
        self._change(MEMBER_REMOVE, pb.MemberRemoveRequest(ID=member), pb.MemberRemoveResponse)

    def _change(self, path: str, request: Message, reply: type[ReplyType]) -> ReplyType:
        """A change of the members. etcd refuses one as long as a member was connected too short."""
        deadline = time.perf_counter() + START_TIMEOUT
        while True:
            try:
                return with_client(self.port, lambda client: client.call(path, request, reply))
            except RpcError as error:
                if "unhealthy" not in error.message or time.perf_counter() > deadline:
                    raise
                time.sleep(RETRY)


def status_of(member: Member) -> pb.StatusResponse:
    """The member's own view; an empty one if it does not answer yet. LoadError if it has ended."""
    member.check()
    try:
        return with_client(
            member.port, lambda client: client.call(STATUS, pb.StatusRequest(), pb.StatusResponse)
        )
    except (OSError, LoadError, RpcError):
        return pb.StatusResponse(leader=1)


Result = TypeVar("Result")


def with_client(port: int, use: Callable[[Client], Result]) -> Result:
    """Do something on a connection of its own."""
    client = Client(port)
    try:
        return use(client)
    finally:
        client.close()
