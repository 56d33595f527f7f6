"""How a leader stays one: heartbeats, and the check that a quorum still hears them."""

from __future__ import annotations

from kvorum.raft.core import Raft
from kvorum.raft.types import NONE, Message, MsgType


def broadcast_heartbeat(r: Raft) -> None:
    """Tell everybody who leads and what is committed; carry the number of the newest read."""
    context = r.read_only.context()
    for member, pr in r.tracker.progress.items():
        if member == r.id:
            continue
        # Never beyond what the member is known to have: its log may differ from there on.
        commit = min(pr.match, r.log.committed)
        r.send(Message(MsgType.HEARTBEAT, to=member, commit=commit, context=context))
        pr.sent_commit = commit


def check_quorum(r: Raft) -> None:
    """Step down unless a quorum was heard of since the last check."""
    if not r.tracker.quorum_active():
        r.logger.warn(f"{r.id:x} stepped down to follower since quorum is not active")
        r.become_follower(r.term, NONE)
    for member, pr in r.tracker.progress.items():
        if member != r.id:
            pr.recent_active = False
