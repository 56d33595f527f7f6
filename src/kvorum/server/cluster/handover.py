"""A leader that stops hands its office over first, so that nobody has to wait for an election."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.server.raftnode import RaftNode
from kvorum.types import MemberID

lg = get_logger()


async def hand_over(
    raft: RaftNode,
    cluster: Cluster,
    loop: asyncio.AbstractEventLoop,
    *,
    tick: float,
    patience: float,
) -> None:
    """Have the voter lead that has been connected longest, if this member leads and there is one.

    ``tick`` and ``patience`` in seconds; raft gives up after an election time-out. It is logged if
    nothing comes of it; the others then hold an election.
    """
    leader = raft.leader
    about = {"local_member_id": f"{cluster.local:x}", "current_leader_member_id": f"{leader:x}"}
    if not raft.is_leader:
        lg.info("skipped leadership transfer; local server is not leader", **about)
        return
    if len(cluster.voters()) < 2:
        lg.info("skipped leadership transfer for single voting member cluster", **about)
        return
    target = _longest_connected(raft, cluster)
    if target is None:
        lg.warn("leadership transfer failed", error="etcdserver: unhealthy cluster", **about)
        return
    about["transferee_member_id"] = f"{target:x}"
    lg.info("leadership transfer starting", **about)
    started = loop.time()
    raft.transfer_leader(target)
    while raft.leader != target:
        gone = raft.transport.active_since(target) is None
        if gone or loop.time() - started > patience:
            why = "lost the connection" if gone else "leader transfer took too long"
            lg.warn("leadership transfer failed", error=f"etcdserver: {why}", **about)
            return
        await asyncio.sleep(tick)
    lg.info("leadership transfer finished", took=timedelta(seconds=loop.time() - started), **about)


def _longest_connected(raft: RaftNode, cluster: Cluster) -> MemberID | None:
    since = {
        voter: moment
        for voter in cluster.voters()
        if voter != cluster.local and (moment := raft.transport.active_since(voter)) is not None
    }
    return min(since, key=lambda voter: since[voter], default=None)
