"""Who leads, for those to whom it matters; and whether a leader may still believe in itself.

A member that stood still for a while (paused, or its disk or CPU taken away) may have been replaced
without having noticed. What it knows as the leader, such as how much time leases have left, must
not be used until a quorum has confirmed it (etcd's ensureLeadership). The same goes for one that
asked another to lead, to the end of the term: that one leads at once, and whoever does not hear
of it would renew leases that the new leader lets end. (etcd's goes on renewing.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from kvorum import errors
from kvorum.log import get_logger
from kvorum.membership import Cluster, Member
from kvorum.server.awaited import RequestFailed, until_fresh
from kvorum.server.reads import ReadGate
from kvorum.types import MemberID

STILL_TICKS: Final = 3
"""Ticks that may be missed before a leader has to ask."""

lg = get_logger()


class KnowsLeader(Protocol):
    """What consensus knows of the leader; ``leader`` is 0 while there is none."""

    @property
    def leader(self) -> MemberID: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def handing_over(self) -> bool: ...


class Leadership:
    """``changed`` and ``ticked`` are to be called when they say; the rest is for the asking."""

    def __init__(
        self,
        *,
        raft: KnowsLeader,
        cluster: Cluster,
        reads: ReadGate,
        tick: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._raft = raft
        self._cluster = cluster
        self._reads = reads
        self._patience = STILL_TICKS * tick
        self._loop = loop
        self._last_tick = loop.time()
        self._gaps = 0
        self._confirmed_gaps = 0
        self._waiting: set[asyncio.Future[None]] = set()

    # What the server reports

    def changed(self) -> None:
        """There is another leader, or none, or the member list is another."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def ticked(self) -> None:
        """Consensus was told that a tick has passed."""
        now = self._loop.time()
        if now - self._last_tick > self._patience:
            self._gaps += 1
        self._last_tick = now

    # Believing in oneself

    def is_led_by(self, member: MemberID) -> bool:
        return self._raft.leader == member

    @property
    def leads_here(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self._raft.is_leader

    def is_sure(self, now: float) -> bool:
        """Whether this member, which leads as far as it knows, asked no other to, and ran without
        a break until ``now`` or was confirmed after the last one."""
        return (
            self._gaps == self._confirmed_gaps
            and now - self._last_tick <= self._patience
            and not self._raft.handing_over
        )

    @property
    def handing_over(self) -> bool:
        """Whether this member asked another to lead in its term."""
        return self._raft.handing_over

    async def is_confirmed(self) -> bool:
        """Whether this member leads, asking a quorum if it is not sure."""
        if not self._raft.is_leader:
            return False
        if self.is_sure(self._loop.time()):
            return True
        gaps = self._gaps
        try:
            await until_fresh(self._reads, self._loop)
        except (errors.EtcdError, RequestFailed) as error:
            lg.warn("failed to check current member's leadership", error=str(error))
            return False
        if not self._raft.is_leader:
            lg.warn("current member isn't a leader", new_lead=f"{self._raft.leader:x}")
            return False
        self._confirmed_gaps = max(self._confirmed_gaps, gaps)
        return True

    # Waiting for others

    async def leader(self, deadline: float) -> Member:
        """The member that leads, as soon as there is one.

        Raises:
            errors.NoLeader: there was none until ``deadline`` (loop time), or it has no URLs.
        """
        await self.until(lambda: self._raft.leader in self._cluster.members, deadline)
        member = self._cluster.members.get(self._raft.leader)
        if member is None or not member.peer_urls:
            raise errors.NoLeader
        return member

    async def until(self, true: Callable[[], bool], deadline: float) -> bool:
        """Wait until something about the leader is true; false if it was not until ``deadline``
        (loop time)."""
        while not true():
            waiting: asyncio.Future[None] = self._loop.create_future()
            self._waiting.add(waiting)
            alarm = self._loop.call_at(deadline, _wake, waiting)
            try:
                await waiting
            finally:
                alarm.cancel()
                self._waiting.discard(waiting)
            if self._loop.time() >= deadline:
                return true()
        return True


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
