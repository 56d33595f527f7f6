"""A leader that no longer has what somebody who was away needs, and has to send a snapshot."""

from __future__ import annotations

import asyncio

from chaos.cluster import Settings, has_short_log
from chaos.members import ChaosMember
from support.rpc import STATUS

from kvorum.pb import etcdserverpb as pb
from sim import words

IDLE = pb.DeleteRangeRequest(key=b"nothing").SerializeToString()
"""An entry that changes nothing: of these a history need not know."""


async def cut_log(leader: ChaosMember, settings: Settings) -> None:
    """Have the leader forget all that it has logged by now."""
    status = await leader.ask(STATUS, timeout=5.0)
    assert status is not None
    async with leader.channel() as channel, asyncio.timeout(60.0):
        while _cut_to(leader, settings) <= status.raftIndex:
            await asyncio.gather(
                *(channel.unary(words.DELETE, IDLE, timeout=20.0) for _ in range(200))
            )


def _cut_to(member: ChaosMember, settings: Settings) -> int:
    """The index up to which its log surely is cut.

    Etcd 3.5 cuts in the background, in any order with the snapshots that come after, and tells so.
    Later etcds and ours cut before they take a snapshot of a later entry.
    """
    if has_short_log(member.binary):
        return snapshots(member)[-2] - settings.catch_up
    told = (entry.get("compact-index", 0) for entry in member.log_entries())
    return max(told, default=0)


def snapshots(member: ChaosMember) -> list[int]:
    """The indexes of its two newest, of which files are named after term and index once they are
    whole; 0 for those that are not there."""
    whole = member.snap_dir().glob("0*-*.snap")
    return [0, 0, *sorted(int(path.stem[17:], 16) for path in whole)][-2:]
