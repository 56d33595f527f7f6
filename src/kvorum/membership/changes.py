"""Membership changes as the raft log holds them: a ConfChange with a member's JSON in its context.

The shapes are etcd's, as members of both kinds read each other's log.
"""

from __future__ import annotations

import json

from kvorum.membership.member import Member, go_json
from kvorum.raft.types import ConfChange, ConfChangeType
from kvorum.types import MemberID

_ADDING = (ConfChangeType.ADD_NODE, ConfChangeType.ADD_LEARNER_NODE)


def adding(member: Member) -> ConfChange:
    """A new member, as a voter or a learner."""
    kind = ConfChangeType.ADD_LEARNER_NODE if member.is_learner else ConfChangeType.ADD_NODE
    return ConfChange(kind, member.id, member.to_json())


def promoting(member: MemberID) -> ConfChange:
    """A learner that becomes a voter."""
    context = go_json({"id": member, "peerURLs": None, "isPromote": True})
    return ConfChange(ConfChangeType.ADD_NODE, member, context)


def updating(member: Member) -> ConfChange:
    """A member with other peer URLs."""
    return ConfChange(ConfChangeType.UPDATE_NODE, member.id, member.to_json())


def removing(member: MemberID) -> ConfChange:
    return ConfChange(ConfChangeType.REMOVE_NODE, member)


def is_promotion(change: ConfChange) -> bool:
    """Whether an addition makes a voter of a learner. Raises ValueError for a context that is no
    JSON."""
    if change.type not in _ADDING:
        return False
    fields = json.loads(change.context)
    return isinstance(fields, dict) and bool(fields.get("isPromote"))


def member_of(change: ConfChange) -> Member:
    """The member in a change's context.

    Raises:
        ValueError: the context is no member's JSON.
        AssertionError: it is another member than the change names; so the log is not to be trusted.
    """
    member = Member.from_json(change.context)
    assert member.id == change.node_id, f"a change of {change.node_id:x} with {member.id:x} in it"
    return member
