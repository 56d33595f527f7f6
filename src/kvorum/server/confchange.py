"""Membership changes, applied: validated, handed to raft, written to the member list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from kvorum import failpoint
from kvorum.errors import EtcdError
from kvorum.log import get_logger
from kvorum.membership import Cluster, changes
from kvorum.raft.codec import decode_conf_change
from kvorum.raft.types import NONE, ConfChange, ConfChangeType, ConfState, Entry
from kvorum.types import MemberID

Kind = Literal["add", "promote", "update", "remove", "none"]

lg = get_logger()


class Change(NamedTuple):
    """What became of a change: which member it was about, and its peer URLs if they are new."""

    kind: Kind
    member: MemberID
    urls: tuple[str, ...] = ()


NO_CHANGE: Final = Change("none", NONE)


@dataclass(frozen=True, slots=True)
class Applied:
    """A conf change entry, carried out. ``request`` is the proposer's request id; ``refusal`` is
    what the proposer is to be told if the rules did not allow the change."""

    request: int
    conf_state: ConfState
    change: Change
    refusal: EtcdError | None = None


class _Plan(NamedTuple):
    change: Change
    carry_out: Callable[[], None]


def apply_conf_change(
    entry: Entry, cluster: Cluster, change_conf: Callable[[ConfChange], ConfState]
) -> Applied:
    """Apply a conf change entry.

    One that the rules refuse still goes to raft, as a change of node 0, which changes nothing:
    every member must count the same entries.

    Raises:
        ValueError, AssertionError: the entry makes no sense, and so the log can't be trusted.
    """
    if failpoint.active:
        failpoint.hit("beforeApplyOneConfChange")
    change = decode_conf_change(entry.data)
    try:
        plan = _plan(change, cluster)
    except EtcdError as refusal:
        lg.warn("refused a configuration change", index=entry.index, error=str(refusal))
        state = change_conf(ConfChange(change.type, NONE, b"", change.id))
        return Applied(change.id, state, NO_CHANGE, refusal)
    state = change_conf(change)
    plan.carry_out()
    _log(plan.change, cluster)
    return Applied(change.id, state, plan.change)


def _plan(change: ConfChange, cluster: Cluster) -> _Plan:
    """Validate a change, and say what it does to the member list."""
    if change.type is ConfChangeType.REMOVE_NODE:
        return _removal(MemberID(change.node_id), cluster)
    member = changes.member_of(change)
    if changes.is_promotion(change):
        return _promotion(member.id, cluster)
    if change.type is ConfChangeType.UPDATE_NODE:
        cluster.check_update(member.id, member.peer_urls)
        return _Plan(
            Change("update", member.id, member.peer_urls),
            lambda: cluster.set_peer_urls(member.id, member.peer_urls),
        )
    cluster.check_add(member)
    return _Plan(Change("add", member.id, member.peer_urls), lambda: cluster.add(member))


def _removal(member: MemberID, cluster: Cluster) -> _Plan:
    cluster.check_remove(member)
    return _Plan(Change("remove", member), lambda: cluster.remove(member))


def _promotion(member: MemberID, cluster: Cluster) -> _Plan:
    cluster.check_promote(member)
    return _Plan(Change("promote", member), lambda: cluster.promote(member))


_TEXTS: Final[dict[Kind, str]] = {
    "add": "added member",
    "promote": "promote member",
    "update": "updated member",
    "remove": "removed member",
}


def _log(change: Change, cluster: Cluster) -> None:
    lg.info(
        _TEXTS[change.kind],
        cluster_id=f"{cluster.id:x}",
        local_member_id=f"{cluster.local:x}",
        member_id=f"{change.member:x}",
        peer_urls=list(change.urls),
        is_learner=change.member in cluster.learners(),
    )
