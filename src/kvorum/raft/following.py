"""A follower's side: taking entries, the commit index and snapshots from a leader (section 5.3)."""

from __future__ import annotations

from kvorum.raft import membership
from kvorum.raft.core import Raft
from kvorum.raft.log import LogSlice
from kvorum.raft.types import (
    NONE,
    EntryID,
    Message,
    MsgType,
    Snapshot,
    StateType,
)
from kvorum.types import Term

_EMPTY = Snapshot()


def on_append(r: Raft, m: Message) -> None:
    """Take over a leader's entries, or tell it where the logs may agree."""
    piece = LogSlice(m.term, EntryID(m.log_term, m.index), m.entries)
    flaw = piece.flaw()
    if flaw is not None:
        # No leader sends this; taking it would break the log. To the leader it is a lost message.
        r.logger.error(f"{r.id:x} ignored a malformed MsgApp from {m.from_:x}: {flaw}")
        return
    log = r.log
    if m.index < log.committed:
        r.send(Message(MsgType.APP_RESP, to=m.from_, index=log.committed))
        return
    last = log.maybe_append(piece, m.commit)
    if last is not None:
        r.send(Message(MsgType.APP_RESP, to=m.from_, index=last))
        return
    r.logger.debug(
        f"{r.id:x} [logterm: {log.term(m.index) or 0}, index: {m.index}] rejected MsgApp "
        f"[logterm: {m.log_term}, index: {m.index}] from {m.from_:x}"
    )
    # Entries of ours with a larger term than the leader's at m.index are not in its log.
    hint = log.find_conflict_by_term(min(m.index, log.last_index()), m.log_term)
    r.send(
        Message(
            MsgType.APP_RESP,
            to=m.from_,
            index=m.index,
            reject=True,
            reject_hint=hint.index,
            log_term=hint.term,
        )
    )


def on_heartbeat(r: Raft, m: Message) -> None:
    """The leader lives; it vouches that we have everything up to the commit index it sent."""
    r.log.commit_to(m.commit)
    r.send(Message(MsgType.HEARTBEAT_RESP, to=m.from_, context=m.context))


def on_snapshot(r: Raft, m: Message) -> None:
    """Replace the log by the leader's snapshot if it is ahead of ours (section 7)."""
    snapshot = m.snapshot or _EMPTY
    meta = snapshot.metadata
    restored = _restore(r, snapshot)
    verdict = "restored" if restored else "ignored"
    r.logger.info(
        f"{r.id:x} [commit: {r.log.committed}] {verdict} snapshot "
        f"[index: {meta.index}, term: {meta.term}]"
    )
    index = r.log.last_index() if restored else r.log.committed
    r.send(Message(MsgType.APP_RESP, to=m.from_, index=index))


def _restore(r: Raft, snapshot: Snapshot) -> bool:
    meta = snapshot.metadata
    log = r.log
    if meta.index <= log.committed:
        return False
    if r.state is not StateType.FOLLOWER:
        # Never happens; were it to, this is the way out that does no harm.
        r.logger.warn(f"{r.id:x} attempted to restore snapshot as leader; should never happen")
        r.become_follower(Term(r.term + 1), NONE)
        return False
    state = meta.conf_state
    # Whoever is in learners_next is in voters_outgoing.
    members = (*state.voters, *state.learners, *state.voters_outgoing)
    if r.id not in members:
        r.logger.warn(
            f"{r.id:x} attempted to restore snapshot but it is not in the ConfState {state}; "
            "should never happen"
        )
        return False
    if log.matches(EntryID(meta.term, meta.index)):
        _describe(r, snapshot, "fast-forwarded commit to")
        log.commit_to(meta.index)
        return False
    log.restore(snapshot)
    membership.restore(r, state)
    _describe(r, snapshot, "restored")
    return True


def _describe(r: Raft, snapshot: Snapshot, verb: str) -> None:
    last = r.log.last_id()
    meta = snapshot.metadata
    r.logger.info(
        f"{r.id:x} [commit: {r.log.committed}, lastindex: {last.index}, lastterm: {last.term}] "
        f"{verb} snapshot [index: {meta.index}, term: {meta.term}]"
    )
