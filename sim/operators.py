"""People who run the cluster: they add, promote and remove members, and move the leader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum import errors
from kvorum.pb import etcdserverpb as pb
from kvorum.types import MemberID
from sim import words
from sim.calls import Outcome
from sim.clients import Caller

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.member import Member

LEAST: Final = 3
"""Members that stay. Of two, the one that removes itself may be gone before the other has heard
that this is decided; and that one can then never lead, in any raft that changes one member at a
time.
"""
MOST: Final = 6
PATIENCE: Final = 5.0
_REFUSALS: Final = (errors.Unhealthy.message, errors.MemberNotEnoughStarted.message)
"""Answers which say that nothing was changed, nor will be."""


class Mover:
    """Moves the leader now and then."""

    def __init__(self, caller: Caller, interval: float) -> None:
        self.stopped = False
        self._caller = caller
        self._interval = interval

    def start(self) -> None:
        self._caller.world.after(self._caller.random.expovariate(1 / self._interval), self._go)

    def _go(self) -> None:
        if self.stopped:
            return
        self.start()
        cluster: Cluster = self._caller.cluster
        leader = cluster.leader()
        others = [m for m in cluster.serving() if m is not leader and m.id is not None]
        if leader is None or leader.process is None or not others:
            return
        target = self._caller.random.choice(others)
        cluster.trace(f"the lead is to move from {leader} to {target}")
        message = pb.MoveLeaderRequest(targetID=target.id or 0).SerializeToString()
        method = leader.methods[words.MOVE_LEADER]
        cluster.clients.unary(leader.process, method, message, self._done, timeout=PATIENCE)

    def _done(self, outcome: Outcome) -> None:
        if outcome.code:
            self._caller.cluster.trace(f"the lead was not moved: {outcome.error}")


class Membership:
    """Adds a learner and later promotes it, adds a voter, or removes a member: one at a time."""

    def __init__(self, caller: Caller, interval: float) -> None:
        self.stopped = False
        self._caller = caller
        self._cluster = caller.cluster
        self._random = caller.random
        self._interval = interval
        self._learner: Member | None = None
        self._leaving: set[Member] = set()
        """Removed, for all that is known, and perhaps still running."""

    def start(self) -> None:
        self._caller.world.after(self._random.expovariate(1 / self._interval), self._go)

    def _go(self) -> None:
        if self.stopped:
            return
        if self._learner is not None and self._random.random() < 0.8:
            self._promote(self._learner)
        elif len(self._cluster.members) < MOST and self._random.random() < 0.5:
            self._add(learner=self._random.random() < 0.7)
        else:
            self._remove()

    def _add(self, *, learner: bool) -> None:
        if self._learner is not None:
            learner = False
        member = self._cluster.new_member()
        self._cluster.trace(f"{member} is to be added{' as a learner' if learner else ''}")
        request = pb.MemberAddRequest(peerURLs=[member.url], isLearner=learner)

        def done(outcome: Outcome) -> None:
            self.start()
            if outcome.by_server and outcome.error in _REFUSALS:
                self._cluster.trace(f"{member} was not added: {outcome.error}")
            elif outcome.code:
                self._cluster.trace(f"{member} was perhaps not added: {outcome.error}")
                self._cluster.orphans.append(member)
            else:
                self._join(member, pb.MemberAddResponse.FromString(outcome.message), learner)

        if not self._caller.unary(words.MEMBER_ADD, request.SerializeToString(), done, PATIENCE):
            self.start()

    def _join(self, member: Member, added: pb.MemberAddResponse, learner: bool) -> None:
        """As an operator would: with the list that the answer gave."""
        cluster = self._cluster
        member.id = MemberID(added.member.ID)
        cluster.members.append(member)
        known = {m.url: m for m in [*cluster.members, *cluster.orphans, *cluster.gone]}
        member.initial = [known[url] for each in added.members for url in each.peerURLs]
        member.joins = True
        member.start()
        if learner:
            self._learner = member

    def _promote(self, member: Member) -> None:
        request = pb.MemberPromoteRequest(ID=member.id or 0).SerializeToString()

        def done(outcome: Outcome) -> None:
            self.start()
            if outcome.code:
                self._cluster.trace(f"{member} was not promoted: {outcome.error}")
            else:
                self._cluster.trace(f"{member} is promoted")
            if (
                not outcome.code
                or not outcome.by_server
                or "only promote a learner member" in (outcome.error[-35:])
            ):
                self._learner = None

        if not self._caller.unary(words.MEMBER_PROMOTE, request, done, PATIENCE):
            self.start()

    def _remove(self) -> None:
        staying = [m for m in self._cluster.members if m not in self._leaving]
        if len(staying) <= LEAST:
            self.start()
            return
        member = self._random.choice(self._cluster.members)
        if member.id is None:
            self.start()
            return
        self._leaving.add(member)
        self._cluster.trace(f"{member} is to be removed")
        request = pb.MemberRemoveRequest(ID=member.id).SerializeToString()

        def done(outcome: Outcome) -> None:
            self.start()
            if outcome.code:
                self._cluster.trace(f"{member} was perhaps not removed: {outcome.error}")
                if outcome.by_server and outcome.error in _REFUSALS:
                    self._leaving.discard(member)
                return
            self._cluster.trace(f"{member} was removed")
            if self._learner is member:
                self._learner = None
            delay = self._random.uniform(0, 4)  # it may stay for a while, and should end itself
            self._caller.world.after(delay, self._cluster.retire, member)

        if not self._caller.unary(words.MEMBER_REMOVE, request, done, PATIENCE):
            self._leaving.discard(member)
            self.start()
