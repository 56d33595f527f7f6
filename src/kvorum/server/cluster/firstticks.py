"""Skips most of the first election time-out, which a member that just started need not wait out.

A restarted member would otherwise wait a whole time-out before it campaigns, in a cluster that may
have no leader. It waits until it has heard of others, and leaves two ticks for a leader's heartbeat
to come (etcd's ``--initial-election-tick-advance``).
"""

from __future__ import annotations

import asyncio
from typing import Final

from kvorum.log import get_logger
from kvorum.membership import Cluster
from kvorum.server.raftnode import RaftNode

INTERVAL: Final = 0.05
PATIENCE: Final = 5.0
"""Seconds for connections to come up; after that nothing is gained any more."""

SPARE: Final = 2

lg = get_logger()


async def skip_first_ticks(raft: RaftNode, cluster: Cluster, election_ticks: int) -> None:
    """Return when the ticks are skipped, or need not be."""
    lg.info("starting initial election tick advance", election_ticks=election_ticks)
    for _ in range(round(PATIENCE / INTERVAL)):
        await asyncio.sleep(INTERVAL)
        active = sum(raft.transport.active_since(m.id) is not None for m in cluster.others())
        if active > 1 or raft.leader:
            break
    else:
        return
    if raft.leader:
        return
    ticks = election_ticks - SPARE
    lg.info(
        "initialized peer connections; fast-forwarding election ticks",
        local_member_id=f"{cluster.local:x}",
        forward_ticks=ticks,
        election_ticks=election_ticks,
        active_remote_members=active,
    )
    raft.advance_ticks(ticks)
