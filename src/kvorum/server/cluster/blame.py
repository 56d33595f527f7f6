"""Why a request ran out of time, as far as this member can tell (etcd's three errors)."""

from __future__ import annotations

from kvorum import errors
from kvorum.errors import EtcdError
from kvorum.membership import Cluster
from kvorum.raft.types import NONE
from kvorum.server.raftnode import RaftNode
from kvorum.types import MemberID


class Blame:
    """``election_timeout`` in seconds. Times are those of the loop."""

    def __init__(self, raft: RaftNode, cluster: Cluster, election_timeout: float) -> None:
        self._raft = raft
        self._cluster = cluster
        self._election_timeout = election_timeout
        self._elected = float("-inf")

    def elected(self, now: float) -> None:
        """This member has become the leader."""
        self._elected = now

    def late(self, started: float) -> type[EtcdError]:
        """The error for a proposal that was made at ``started``."""
        lost = self._elected - 2 * self._election_timeout
        if lost < started < self._elected:
            return errors.TimeoutDueToLeaderFail
        leader = self._raft.leader
        if leader == self._cluster.local:
            connected = self._has_quorum_since(started)
        else:
            connected = leader == NONE or self._is_connected_since(leader, started)
        return errors.Timeout if connected else errors.TimeoutDueToConnectionLost

    def _is_connected_since(self, member: MemberID, moment: float) -> bool:
        since = self._raft.transport.active_since(member)
        return since is not None and since < moment

    def _has_quorum_since(self, moment: float) -> bool:
        members = self._cluster.members
        local = self._cluster.local
        count = sum(m == local or self._is_connected_since(m, moment) for m in members)
        return count >= len(members) // 2 + 1
