"""Members change their kind: one takes over another's folder, or another's place."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from chaos.cluster import POLL, Cluster, flags_for
from chaos.members import ChaosMember
from support.rpc import STATUS, Rpc

from kvorum.pb import etcdserverpb as pb

_ADD = Rpc("/etcdserverpb.Cluster/MemberAdd", pb.MemberAddRequest, pb.MemberAddResponse)
_REMOVE = Rpc("/etcdserverpb.Cluster/MemberRemove", pb.MemberRemoveRequest, pb.MemberRemoveResponse)
_MOVE = Rpc("/etcdserverpb.Maintenance/MoveLeader", pb.MoveLeaderRequest, pb.MoveLeaderResponse)
_TRIES = 30


async def take_over(cluster: Cluster, member: ChaosMember, binary: Path) -> None:
    """Another program goes on with the member's folder."""
    await asyncio.to_thread(member.stop)
    change_kind(cluster, member, binary)
    member.spawn()
    await caught_up(cluster, member)


async def replace(cluster: Cluster, member: ChaosMember, binary: Path) -> None:
    """The member is removed, and another program takes its place, with nothing on disk."""
    other = next(each for each in cluster.serving if each is not member)
    await until_granted(other, _REMOVE, ID=cluster.ids[member.name])
    await asyncio.to_thread(member.wait_exit)
    shutil.rmtree(member.data_dir)
    await until_granted(other, _ADD, peerURLs=[member.peer_url])
    change_kind(cluster, member, binary)
    member.flags.append("--initial-cluster-state=existing")
    member.spawn()
    await caught_up(cluster, member)


def change_kind(cluster: Cluster, member: ChaosMember, binary: Path) -> None:
    member.binary = binary
    member.flags = flags_for(binary, cluster.settings)


async def until_granted(member: ChaosMember, rpc: Rpc, **fields: Any) -> Any:
    """The reply; leaders change, and members have to be together for a while first."""
    for _ in range(_TRIES):
        reply = await member.ask(rpc, timeout=5.0, **fields)
        if reply is not None:
            return reply
        await asyncio.sleep(0.3)
    raise AssertionError(f"{rpc.path} was refused {_TRIES} times at {member.name}")


async def caught_up(cluster: Cluster, member: ChaosMember, seconds: float = 30.0) -> None:
    """Wait until a member that has started has what the others have."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    revision = await cluster.revision()
    while True:
        cluster.check_alive()
        reply = await member.ask(STATUS)
        if reply is not None:
            cluster.ids[member.name] = reply.header.member_id
            if reply.leader and reply.header.revision >= revision:
                return
        if loop.time() > end:
            raise AssertionError(f"{member.name} did not catch up:\n{member.log_tail(30)}")
        await asyncio.sleep(POLL)


async def lead(cluster: Cluster, heir: ChaosMember) -> None:
    """Have a member lead."""
    for _ in range(_TRIES):
        await cluster.settled(20.0)
        leader = await cluster.leader()
        if leader is heir:
            return
        if leader is not None:
            await leader.ask(_MOVE, timeout=5.0, targetID=cluster.ids[heir.name])
    raise AssertionError(f"{heir.name} will not lead: {await cluster.describe()}")
