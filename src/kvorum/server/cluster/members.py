"""Changes of the membership, and of the leader, as they are asked for.

Whether a change is sensible is judged here, before it goes into the log; whether it is valid, when
it comes out of it (`confchange`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from kvorum import errors
from kvorum.config.urls import parse_url
from kvorum.errors import Code, EtcdError
from kvorum.log import get_logger
from kvorum.membership import Cluster, Member, changes, member_id, quorum
from kvorum.raft.status import Status
from kvorum.raft.types import ConfChange
from kvorum.server.awaited import Awaited, RequestFailed
from kvorum.server.catchup import CatchUp
from kvorum.server.cluster.leadership import KnowsLeader, Leadership
from kvorum.server.cluster.to_leader import LedHere, ToLeader, TryAgain
from kvorum.server.proposer import Caller
from kvorum.telemetry import ServerMetrics
from kvorum.types import MemberID

PROMOTE_PATH: Final = "/members/promote/"
READY: Final = 0.9
"""Share of the leader's log that a learner must have before it may vote."""

TRANSFER_TIMEOUT_TEXT: Final = "etcdserver: request timed out, leader transfer took too long"
NOT_FOUND_TEXT: Final = "membership: ID not found"
NOT_LEARNER_TEXT: Final = "membership: can only promote a learner member"
"""What etcd's members say to each other where clients are told another text."""

_MAX_REPLY: Final = 1 << 20

lg = get_logger()


class Raft(KnowsLeader, Protocol):
    """What is asked of the driver of consensus."""

    def status(self) -> Status: ...
    def propose_conf_change(self, change: ConfChange, caller: Caller) -> None: ...
    def transfer_leader(self, target: MemberID) -> None: ...


class Transport(Protocol):
    def active_since(self, member: MemberID) -> float | None: ...


class MemberChanges:
    """What the Cluster service and MoveLeader ask for. All of it may raise `EtcdError`; a change
    that was carried out gives the members as they are then, in ascending order of id.

    ``strict`` is ``--strict-reconfig-check``; ``wall_clock`` gives Unix seconds, of which the ids
    of new members are made.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        raft: Raft,
        transport: Transport,
        leadership: Leadership,
        catch_up: CatchUp,
        to_leader: ToLeader,
        metrics: ServerMetrics,
        strict: bool,
        wall_clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._cluster = cluster
        self._raft = raft
        self._transport = transport
        self._leadership = leadership
        self._catch_up = catch_up
        self._to_leader = to_leader
        self._metrics = metrics
        self._strict = strict
        self._wall_clock = wall_clock
        self._loop = loop

    # Adding, updating, removing

    async def add(self, peer_urls: Sequence[str], *, learner: bool) -> tuple[Member, list[Member]]:
        """Add a member, and return it with all members.

        Raises:
            errors.MemberBadURLs: a URL is not one, or there are none.
            errors.MemberNotEnoughStarted, errors.Unhealthy: the cluster might lose its quorum.
            errors.MemberExist, errors.PeerURLExist, errors.TooManyLearners: see `Cluster`.
        """
        urls = checked_urls(peer_urls)
        identity = member_id(urls, "", unix_seconds=int(self._wall_clock()))
        member = Member(identity, urls, is_learner=learner)
        if self._strict:
            self._check_add(member)
        return member, await self._configure(changes.adding(member))

    def _check_add(self, member: Member) -> None:
        members = self._cluster.members.values()
        if not member.is_learner and not quorum.enough_started_to_add(members):
            raise self._refusal("add", member.id, errors.MemberNotEnoughStarted())
        if not quorum.healthy_to_add(members, self._is_steady):
            raise self._refusal("add", member.id, errors.Unhealthy())

    async def update(self, member: MemberID, peer_urls: Sequence[str]) -> list[Member]:
        """Give a member other peer URLs.

        Raises:
            errors.MemberBadURLs: a URL is not one, or there are none. (etcd lets them through, and
                every member that is told of them ends.)
            errors.MemberNotFound, errors.PeerURLExist: see `Cluster`.
        """
        checked_urls(peer_urls)
        return await self._configure(changes.updating(Member(member, tuple(peer_urls))))

    async def remove(self, member: MemberID) -> list[Member]:
        """Remove a member.

        Raises:
            errors.MemberNotEnoughStarted, errors.Unhealthy: the cluster might lose its quorum.
            errors.MemberNotFound: there is no such member.
        """
        if self._strict:
            self._check_remove(member)
        return await self._configure(changes.removing(member))

    def _check_remove(self, leaving: MemberID) -> None:
        known = self._cluster.members.get(leaving)
        if known is not None and known.is_learner:
            return
        members = self._cluster.members.values()
        if not quorum.enough_started_to_remove(members, leaving):
            raise self._refusal("remove", leaving, errors.MemberNotEnoughStarted())
        if leaving != self._cluster.local and self._transport.active_since(leaving) is None:
            return  # it is down, so no quorum in use counts on it
        if not quorum.healthy_to_remove(members, self._is_steady):
            raise self._refusal("remove", leaving, errors.Unhealthy())

    def _refusal(self, what: str, member: MemberID, error: EtcdError) -> EtcdError:
        lg.warn(
            f"rejecting member {what} request",
            local_member_id=f"{self._cluster.local:x}",
            requested_member_id=f"{member:x}",
            error=str(error),
        )
        return error

    def _is_steady(self, member: MemberID) -> bool:
        if member == self._cluster.local:
            return True
        since = self._transport.active_since(member)
        return since is not None and since < self._loop.time() - quorum.STEADY

    async def _configure(self, change: ConfChange) -> list[Member]:
        answer = Awaited(self._loop)
        self._raft.propose_conf_change(change, answer)
        await answer
        lg.info(
            "applied a configuration change through raft",
            local_member_id=f"{self._cluster.local:x}",
            raft_conf_change=str(change.type),
            raft_conf_change_node_id=f"{change.node_id:x}",
        )
        return self._cluster.sorted()

    # Promotion

    async def promote(self, member: MemberID, *, token: str = "") -> list[Member]:
        """Make a voter of a learner. Only the leader knows how far its log is; so another member
        passes the request on, with the caller's ``token``.

        Raises:
            errors.LearnerNotReady: it has less than `READY` of the leader's log.
            errors.MemberNotFound, errors.MemberNotLearner: it is no learner.
            errors.MemberNotEnoughStarted: too few of the others run.
            errors.NoLeader, errors.Timeout: the leader could not be asked.
        """
        deadline = self._to_leader.deadline()
        while True:
            try:
                return await self._promote_here(member)
            except errors.NotLeader:
                pass
            try:
                return await self._to_leader.ask(
                    lambda url, timeout: self._promote_there(url, timeout, member, token), deadline
                )
            except LedHere:
                if self._loop.time() >= deadline:
                    raise errors.Timeout from None

    async def _promote_here(self, member: MemberID) -> list[Member]:
        try:
            await self._check_promote(member)
            members = await self._configure(changes.promoting(member))
        except errors.NotLeader:
            raise
        except (EtcdError, RequestFailed) as error:
            self._metrics.promote_failures.with_labels(_peer_text(error)).value += 1
            raise
        self._metrics.promote_successes.value += 1
        return members

    async def _check_promote(self, member: MemberID) -> None:
        await self._catch_up.until_done()
        status = self._raft.status()
        if not status.progress:
            raise errors.NotLeader
        learner = status.progress.get(member)
        if learner is None:
            raise errors.MemberNotFound
        if learner.match < READY * status.progress[status.basic.id].match:
            raise self._refusal("promote", member, errors.LearnerNotReady())
        members = self._cluster.members.values()
        if self._strict and not quorum.enough_started_to_promote(members):
            raise self._refusal("promote", member, errors.MemberNotEnoughStarted())

    async def _promote_there(
        self,
        url: str,
        timeout: float,  # noqa: ASYNC109
        member: MemberID,
        token: str,
    ) -> list[Member]:
        reply = await self._to_leader.http.request(
            "POST",
            url,
            f"{PROMOTE_PATH}{member}",
            headers={"Authorization": token} if token else {},
            timeout=timeout,
            max_body=_MAX_REPLY,
        )
        if reply.status == 200:
            return members_from_json(reply.body)
        text = reply.body.decode(errors="replace")
        if reply.status == 404:
            raise errors.MemberNotFound
        if reply.status == 412 and errors.LearnerNotReady.message in text:
            raise errors.LearnerNotReady
        if reply.status == 412 and NOT_LEARNER_TEXT in text:
            raise errors.MemberNotLearner
        raise TryAgain(text)

    # The leader

    async def move_leader(self, target: MemberID) -> None:
        """Have another member lead, and return when it does.

        Raises:
            errors.NotLeader: this member does not lead now.
            errors.BadLeaderTransferee: the target is no voter of this cluster.
            RequestFailed: it did not lead in time.
        """
        if not self._raft.is_leader:
            raise errors.NotLeader
        member = self._cluster.members.get(target)
        if member is None or member.is_learner:
            raise errors.BadLeaderTransferee
        lg.info("leadership transfer starting", transferee_member_id=f"{target:x}")
        self._raft.transfer_leader(target)
        leads = await self._leadership.until(
            lambda: self._raft.leader == target, self._to_leader.deadline()
        )
        if not leads:
            raise RequestFailed(Code.UNKNOWN, TRANSFER_TIMEOUT_TEXT)
        lg.info("leadership transfer finished", transferee_member_id=f"{target:x}")


def checked_urls(texts: Sequence[str]) -> tuple[str, ...]:
    """Peer URLs as etcd writes them: parsed, and sorted. Raises errors.MemberBadURLs."""
    if not texts:
        raise errors.MemberBadURLs
    try:
        return tuple(sorted(str(parse_url(text)) for text in texts))
    except ValueError as error:
        raise errors.MemberBadURLs from error


def members_to_json(members: Sequence[Member]) -> bytes:
    """The list of members as the peers' HTTP gives it."""
    return b"[%b]\n" % b",".join(member.to_json() for member in members)


def members_from_json(data: bytes) -> list[Member]:
    """Raises TryAgain if it is no such list."""
    try:
        records: Any = json.loads(data)
        return [Member.from_json(json.dumps(record).encode()) for record in records]
    except (ValueError, TypeError) as error:
        raise TryAgain(f"no list of members: {error}") from error


def _peer_text(error: Exception) -> str:
    if isinstance(error, errors.MemberNotFound):
        return NOT_FOUND_TEXT
    if isinstance(error, errors.MemberNotLearner):
        return NOT_LEARNER_TEXT
    return str(error)
