"""Configuration changes: proposing, applying, and what follows from a new configuration.

A change takes effect when it is applied, not when it is appended as in the paper (section 6). That
is as safe as long as at most one is between: old and new configuration overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvorum.raft import codec, confchange, reads, replication
from kvorum.raft.confchange import Outcome
from kvorum.raft.core import Raft
from kvorum.raft.errors import InvariantViolation, ProposalDropped
from kvorum.raft.tracker import ProgressTracker
from kvorum.raft.types import (
    NONE,
    AnyConfChange,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    Message,
    StateType,
)
from kvorum.types import Index


def on_propose(r: Raft, m: Message) -> None:
    """A leader is given entries to append; raises ProposalDropped."""
    propose(r, m.entries)


def propose(r: Raft, entries: Sequence[Entry]) -> None:
    """Append ``entries`` to the leader's log and replicate them; raises ProposalDropped.

    A configuration change that cannot be made now is replaced by an empty entry.
    """
    if not entries:
        raise InvariantViolation(f"{r.id:x} stepped empty MsgProp")
    if r.id not in r.tracker.progress:
        # Removed while leading: what it appended could never be counted on.
        raise ProposalDropped
    if r.lead_transferee:
        r.logger.debug(
            f"{r.id:x} [term {r.term}] transfer leadership to {r.lead_transferee:x} is in "
            "progress; dropping proposal"
        )
        raise ProposalDropped
    if [entry for entry in entries if entry.type]:
        entries = _admit_conf_changes(r, entries)
    if not r.append(entries):
        raise ProposalDropped
    replication.broadcast_append(r)


def _admit_conf_changes(r: Raft, entries: Sequence[Entry]) -> list[Entry]:
    admitted = []
    for place, entry in enumerate(entries, r.log.last_index() + 1):
        if entry.type is not EntryType.NORMAL:
            cc = codec.decode_entry_conf_change(entry).as_v2()
            refusal = _refusal(r, cc)
            if refusal and not r.config.disable_conf_change_validation:
                r.logger.info(
                    f"{r.id:x} ignoring conf change {_describe(cc)} at config "
                    f"{r.tracker.config}: {refusal}"
                )
                # What rides along stays, so that the proposer can be told when this is applied.
                entry = Entry(local=entry.local)
            else:
                r.pending_conf_index = Index(place)
        admitted.append(entry)
    return admitted


def _refusal(r: Raft, cc: ConfChangeV2) -> str:
    """Why ``cc`` may not be appended now, as far as the configuration in force can tell."""
    joint = r.tracker.config.joint()
    leaves = not cc.changes
    if r.pending_conf_index > r.log.applied:
        return (
            f"possible unapplied conf change at index {r.pending_conf_index} "
            f"(applied to {r.log.applied})"
        )
    if joint and not leaves:
        return "must transition out of joint config first"
    if leaves and not joint:
        return "not in joint state; refusing empty conf change"
    return ""


def _describe(cc: ConfChangeV2) -> str:
    words = [f"transition:{cc.transition}", *map(str, cc.changes)]
    if cc.context:
        words.append(f"context:{_quoted(cc.context)}")
    return " ".join(words)


def _quoted(data: bytes) -> str:
    """``data`` in double quotes, as etcd logs it."""
    # With a double quote in it, repr chooses single ones around it.
    inner = repr(b'"' + data)[3:-1].replace("\\'", "'").replace('"', '\\"')
    return f'"{inner}"'


def proposal(cc: AnyConfChange | None, local: object = None) -> Entry:
    """The entry that proposes ``cc``; None leaves a joint configuration."""
    kind, data = codec.encode_conf_change(cc)
    return Entry(type=kind, data=data, local=local)


def maybe_auto_leave(r: Raft) -> None:
    """Leave a joint configuration once the entry that entered it is applied.

    The proposal is refused while leadership is handed over; it is tried again at every apply.
    """
    config = r.tracker.config
    ready = config.auto_leave and r.log.applied >= r.pending_conf_index
    if not ready or r.state is not StateType.LEADER:
        return
    try:
        propose(r, [proposal(None)])
    except ProposalDropped as error:
        r.logger.debug(
            f"not initiating automatic transition out of joint configuration {config}: {error}"
        )
    else:
        r.logger.info(f"initiating automatic transition out of joint configuration {config}")


def apply_conf_change(r: Raft, cc: AnyConfChange) -> ConfState:
    """Put a committed change in force; raises ConfChangeError if it does not fit."""
    return switch(r, confchange.change(r.tracker, r.log.last_index(), cc.as_v2()))


def switch(r: Raft, outcome: Outcome) -> ConfState:
    """Put a configuration in force, and do what a leader has to do about it."""
    r.tracker.switch(*outcome)
    config = r.tracker.config
    r.logger.info(f"{r.id:x} switched to configuration {config}")
    state = config.conf_state()
    own = r.tracker.progress.get(r.id)
    r.is_learner = own is not None and own.is_learner
    if r.state is not StateType.LEADER:
        return state
    if own is None or r.is_learner:
        if r.config.step_down_on_removal:
            r.become_follower(r.term, NONE)
        return state
    if config.voters:
        _lead(r)
    return state


def _lead(r: Raft) -> None:
    """A smaller quorum may commit more; new members should not wait for a heartbeat."""
    reads.answer_confirmed(r)
    if replication.maybe_commit(r):
        reads.on_commit(r)
        replication.broadcast_append(r)
    else:
        for member in r.tracker.progress:
            if member != r.id:
                replication.send_entries(r, member)
    config = r.tracker.config
    if r.lead_transferee not in config.voters | config.outgoing:
        r.lead_transferee = NONE


def restore(r: Raft, state: ConfState) -> None:
    """Put the configuration of a snapshot, or of the storage, in force from scratch."""
    r.tracker = ProgressTracker(r.config.max_inflight_msgs, r.config.max_inflight_bytes)
    restored = switch(r, confchange.restore(r.tracker, r.log.last_index(), state))
    if not restored.equivalent(state):
        raise InvariantViolation(f"ConfStates not equivalent after restore: {state} {restored}")
