"""Which message does what, by role: the transition tables, and the check of terms before them.

A message that a role's table does not have is ignored: it is late, or meant for another role.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvorum.raft import election, following, heartbeat, membership, reads, replication
from kvorum.raft.core import Raft
from kvorum.raft.election import Campaign
from kvorum.raft.errors import ProposalDropped
from kvorum.raft.progress import Progress
from kvorum.raft.read_only import ReadOnlyOption
from kvorum.raft.types import NONE, EntryID, Message, MsgType, Snapshot, StateType
from kvorum.types import MemberID

Handler = Callable[[Raft, Message], None]
MemberHandler = Callable[[Raft, Message, Progress], None]


def step(r: Raft, m: Message) -> None:
    """Advance the state machine by one message, which stays untouched.

    Raises ProposalDropped if ``m`` is a proposal that nobody here can take.
    """
    term = m.term
    # Term 0: a message of this member to itself, or one that is in no term.
    if term and term != r.term:
        if term < r.term:
            _on_older_term(r, m)
            return
        if not _enter_newer_term(r, m):
            return
    kind = m.type
    state = r.state
    handler = _ANY_ROLE.get(kind) or _BY_ROLE[state].get(kind)
    if handler is not None:
        handler(r, m)
    elif state is StateType.LEADER:
        _from_member(r, m)


def _from_member(r: Raft, m: Message) -> None:
    progress = r.tracker.progress.get(m.from_)
    if progress is None:
        r.logger.debug(f"{r.id:x} no progress available for {m.from_:x}")
        return
    handler = _LEADER_FROM_MEMBER.get(m.type)
    if handler is not None:
        handler(r, m, progress)


# --- terms (section 5.1)


def _enter_newer_term(r: Raft, m: Message) -> bool:
    """Follow into ``m``'s term, with the exceptions; false if ``m`` is to be ignored."""
    kind = m.type
    if kind in (MsgType.VOTE, MsgType.PRE_VOTE):
        forced = m.context == election.TRANSFER_CONTEXT
        if not forced and election.in_lease(r):
            # Neither the term nor the vote of one who could disturb a leader (thesis, 4.2.3).
            remaining = r.config.election_tick - r.election_elapsed
            r.logger.info(
                election.describe_request(r, m, "ignored")
                + f": lease is not expired (remaining ticks: {remaining})"
            )
            return False
    if kind is MsgType.PRE_VOTE or (kind is MsgType.PRE_VOTE_RESP and not m.reject):
        # About a term that nobody is in yet; only a rejection is in its sender's own term.
        return True
    r.logger.info(
        f"{r.id:x} [term: {r.term}] received a {kind} message with higher term from "
        f"{m.from_:x} [term: {m.term}]"
    )
    r.become_follower(m.term, m.from_ if kind in _FROM_LEADER else NONE)
    return True


_FROM_LEADER: Final = frozenset({MsgType.APP, MsgType.HEARTBEAT, MsgType.SNAP})


def _on_older_term(r: Raft, m: Message) -> None:
    kind = m.type
    guarded = r.config.check_quorum or r.config.pre_vote
    if guarded and kind in (MsgType.HEARTBEAT, MsgType.APP):
        # A leader of an older term, cut off or late. With these options our vote requests do not
        # raise its term, so that this answer must, or we could never join it nor win against it.
        r.send(Message(MsgType.APP_RESP, to=m.from_))
    elif kind is MsgType.PRE_VOTE:
        # Or a candidate with a higher term and a shorter log would wait for ever.
        r.logger.info(election.describe_request(r, m, "rejected"))
        r.send(Message(MsgType.PRE_VOTE_RESP, to=m.from_, term=r.term, reject=True))
    elif kind is MsgType.STORAGE_APPEND_RESP:
        _on_older_append(r, m)
    else:
        r.logger.info(
            f"{r.id:x} [term: {r.term}] ignored a {kind} message with lower term from "
            f"{m.from_:x} [term: {m.term}]"
        )


def _on_older_append(r: Raft, m: Message) -> None:
    """A write that was asked for in an older term is done.

    Its entries do not count as stable: they may have been replaced since, and even replaced again
    by the same ones, with the write in between still under way. A snapshot is of no term.
    """
    if m.index:
        r.logger.info(
            f"{r.id:x} [term: {r.term}] ignored entry appends from a {m.type} message "
            f"with lower term [term: {m.term}]"
        )
    if m.snapshot is not None:
        _snapshot_applied(r, m.snapshot)


# --- the storage's answers


def _on_storage_append_response(r: Raft, m: Message) -> None:
    if m.index:
        r.log.unstable.stable_to(EntryID(m.log_term, m.index))
    if m.snapshot is not None:
        _snapshot_applied(r, m.snapshot)


def _snapshot_applied(r: Raft, snapshot: Snapshot) -> None:
    index = snapshot.metadata.index
    r.log.unstable.snapshot_stable_to(index)
    r.log.applied_to(max(index, r.log.applied))
    membership.maybe_auto_leave(r)


def _on_storage_apply_response(r: Raft, m: Message) -> None:
    entries = m.entries
    if not entries:
        return
    log = r.log
    last = entries[-1].index
    log.release_applying(last)
    log.applied_to(max(last, log.applied))
    membership.maybe_auto_leave(r)
    r.release_uncommitted(entries)


# --- handlers that belong to one role only


def _no_leader(r: Raft, m: Message) -> None:
    r.logger.info(f"{r.id:x} no leader at term {r.term}; dropping proposal")
    raise ProposalDropped


def _forward_proposal(r: Raft, m: Message) -> None:
    if r.lead == NONE:
        _no_leader(r, m)
    if r.config.disable_proposal_forwarding:
        r.logger.info(
            f"{r.id:x} not forwarding to leader {r.lead:x} at term {r.term}; dropping proposal"
        )
        raise ProposalDropped
    _forward(r, m)


def _forward_read(r: Raft, m: Message) -> None:
    if r.lead == NONE:
        r.logger.info(f"{r.id:x} no leader at term {r.term}; dropping index reading msg")
    else:
        _forward(r, m)


def _forward_transfer(r: Raft, m: Message) -> None:
    if r.lead == NONE:
        r.logger.info(f"{r.id:x} no leader at term {r.term}; dropping leader transfer msg")
    else:
        _forward(r, m)


def _forward(r: Raft, m: Message) -> None:
    """Pass ``m`` on to the leader, with its first sender left in it."""
    copy = Message(m.type, to=r.lead, from_=m.from_, entries=m.entries, context=m.context)
    r.send(copy)


def _as_follower(handle: Handler) -> Handler:
    """``handle``, for a follower: a message from the leader puts the next election off."""

    def handler(r: Raft, m: Message) -> None:
        r.election_elapsed = 0
        r.lead = m.from_
        handle(r, m)

    return handler


def _giving_up(handle: Handler) -> Handler:
    """``handle``, for a candidate: somebody else has won this term (section 5.2)."""

    def handler(r: Raft, m: Message) -> None:
        r.become_follower(m.term, m.from_)
        handle(r, m)

    return handler


def _on_timeout_now(r: Raft, m: Message) -> None:
    r.logger.info(
        f"{r.id:x} [term {r.term}] received MsgTimeoutNow from {m.from_:x} and starts an "
        "election to get leadership."
    )
    # The leader has asked for it, so that there is nobody to ask beforehand.
    election.campaign_for(r, Campaign.TRANSFER)


def _ignore_timeout_now(r: Raft, m: Message) -> None:
    r.logger.debug(
        f"{r.id:x} [term {r.term} state {r.state}] ignored MsgTimeoutNow from {m.from_:x}"
    )


def _ignore(r: Raft, m: Message) -> None:
    """A leader has itself for a leader, and does not forget it."""


def _forget_leader(r: Raft, m: Message) -> None:
    if r.config.read_only_option is ReadOnlyOption.LEASE_BASED:
        # The leader counts on this member not to vote while its lease lasts.
        r.logger.error("ignoring MsgForgetLeader due to ReadOnlyLeaseBased")
    elif r.lead != NONE:
        r.logger.info(f"{r.id:x} forgetting leader {r.lead:x} at term {r.term}")
        r.lead = MemberID(NONE)


# --- the tables

_ANY_ROLE: Final[dict[MsgType, Handler]] = {
    MsgType.VOTE: election.on_vote_request,
    MsgType.PRE_VOTE: election.on_vote_request,
    MsgType.STORAGE_APPEND_RESP: _on_storage_append_response,
    MsgType.STORAGE_APPLY_RESP: _on_storage_apply_response,
}

_CANDIDATE: Final[dict[MsgType, Handler]] = {
    MsgType.PROP: _no_leader,
    MsgType.APP: _giving_up(following.on_append),
    MsgType.HEARTBEAT: _giving_up(following.on_heartbeat),
    MsgType.SNAP: _giving_up(following.on_snapshot),
    MsgType.TIMEOUT_NOW: _ignore_timeout_now,
}

_BY_ROLE: Final[dict[StateType, dict[MsgType, Handler]]] = {
    StateType.FOLLOWER: {
        MsgType.PROP: _forward_proposal,
        MsgType.APP: _as_follower(following.on_append),
        MsgType.HEARTBEAT: _as_follower(following.on_heartbeat),
        MsgType.SNAP: _as_follower(following.on_snapshot),
        MsgType.TRANSFER_LEADER: _forward_transfer,
        MsgType.FORGET_LEADER: _forget_leader,
        MsgType.TIMEOUT_NOW: _on_timeout_now,
        MsgType.READ_INDEX: _forward_read,
        MsgType.READ_INDEX_RESP: reads.on_read_index_response,
    },
    # Only answers to the own campaign count: a candidate may still get some to its pre-vote.
    StateType.PRE_CANDIDATE: {**_CANDIDATE, MsgType.PRE_VOTE_RESP: election.on_vote_response},
    StateType.CANDIDATE: {**_CANDIDATE, MsgType.VOTE_RESP: election.on_vote_response},
    StateType.LEADER: {
        MsgType.PROP: membership.on_propose,
        MsgType.READ_INDEX: reads.on_read_index,
        MsgType.FORGET_LEADER: _ignore,
    },
}

_LEADER_FROM_MEMBER: Final[dict[MsgType, MemberHandler]] = {
    MsgType.APP_RESP: replication.on_append_response,
    MsgType.HEARTBEAT_RESP: replication.on_heartbeat_response,
    MsgType.SNAP_STATUS: replication.on_snapshot_status,
    MsgType.UNREACHABLE: replication.on_unreachable,
    MsgType.TRANSFER_LEADER: replication.on_transfer_leader,
}


# --- time


def tick(r: Raft) -> None:
    """One unit of time has passed."""
    if r.state is StateType.LEADER:
        _tick_leader(r)
        return
    r.election_elapsed += 1
    if r.election_elapsed >= r.randomized_election_timeout and r.promotable():
        r.election_elapsed = 0
        election.campaign(r)


def _tick_leader(r: Raft) -> None:
    r.heartbeat_elapsed += 1
    r.election_elapsed += 1
    if r.election_elapsed >= r.config.election_tick:
        r.election_elapsed = 0
        if r.config.check_quorum:
            heartbeat.check_quorum(r)
        # A transfer that took an election time has failed: accept proposals again.
        r.lead_transferee = NONE
    if r.state is StateType.LEADER and r.heartbeat_elapsed >= r.config.heartbeat_tick:
        r.heartbeat_elapsed = 0
        heartbeat.broadcast_heartbeat(r)
