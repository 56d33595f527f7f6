"""Membership changes, applied: validated, handed to raft, written to the member list."""

from __future__ import annotations

import json
from collections.abc import Callable

from kvorum import failpoint
from kvorum.errors import EtcdError
from kvorum.log import get_logger
from kvorum.membership import Cluster, Member
from kvorum.raft.codec import decode_conf_change
from kvorum.raft.types import NONE, ConfChange, ConfChangeType, ConfState, Entry
from kvorum.types import MemberID

lg = get_logger()


def apply_conf_change(
    entry: Entry, cluster: Cluster, change_conf: Callable[[ConfChange], ConfState]
) -> ConfState:
    """Apply a conf change entry.

    One that the rules refuse still goes to raft, as a change of node 0, which changes nothing:
    every member must count the same entries.
    """
    if failpoint.active:
        failpoint.hit("beforeApplyOneConfChange")
    change = decode_conf_change(entry.data)
    try:
        update = _plan(change, cluster)
    except EtcdError as refusal:
        lg.warn("refused a configuration change", index=entry.index, error=str(refusal))
        return change_conf(ConfChange(change.type, NONE, b"", change.id))
    state = change_conf(change)
    update()
    return state


def _plan(change: ConfChange, cluster: Cluster) -> Callable[[], None]:
    """Validate a change, and return what will change the member list."""
    if change.type not in (ConfChangeType.ADD_NODE, ConfChangeType.ADD_LEARNER_NODE):
        raise NotImplementedError(f"configuration change of type {change.type}")
    member = Member.from_json(change.context)
    if json.loads(change.context).get("isPromote"):
        raise NotImplementedError("promotion of a learner")
    assert member.id == MemberID(change.node_id), (member.id, change.node_id)
    cluster.check_add(member)
    return lambda: cluster.add(member)
