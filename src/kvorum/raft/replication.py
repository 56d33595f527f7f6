"""The leader's side of replication (section 5.3): appends, snapshots, and the answers."""

from __future__ import annotations

from kvorum.raft import reads
from kvorum.raft.core import Raft
from kvorum.raft.errors import (
    InvariantViolation,
    LogCompacted,
    SnapshotTemporarilyUnavailable,
)
from kvorum.raft.progress import Progress, ProgressState
from kvorum.raft.sizes import payload_size
from kvorum.raft.types import NO_INDEX, NONE, Entry, EntryID, Message, MsgType
from kvorum.types import Index, MemberID


def broadcast_append(r: Raft) -> None:
    """Send everybody what they lack, or at least the commit index."""
    for member in r.tracker.progress:
        if member != r.id:
            send_append(r, member)


def send_append(r: Raft, to: MemberID) -> bool:
    """Send the next entries to ``to``, or none with the commit index; true if anything went."""
    return _send_append(r, to, if_empty=True)


def send_entries(r: Raft, to: MemberID) -> bool:
    """Send the next entries to ``to`` if there are any and the flow allows it."""
    return _send_append(r, to, if_empty=False)


def _send_append(r: Raft, to: MemberID, *, if_empty: bool) -> bool:
    pr = r.tracker.progress[to]
    if pr.paused():
        return False
    log = r.log
    prev = Index(pr.next - 1)
    prev_term = log.term(prev)
    if prev_term is None:
        return _send_snapshot(r, to, pr)
    entries: list[Entry] = []
    # With the window full an empty append still goes: should all that fill it be lost, its answer
    # or rejection gets things going again.
    if pr.state is not ProgressState.REPLICATE or not pr.inflights.full():
        try:
            entries = log.entries_from(pr.next, r.config.max_size_per_msg)
        except LogCompacted:
            return _send_snapshot(r, to, pr)
    if not entries and not if_empty:
        return False
    r.send(
        Message(
            MsgType.APP,
            to=to,
            log_term=prev_term,
            index=prev,
            entries=entries,
            commit=log.committed,
        )
    )
    size = payload_size(entries) if r.config.max_inflight_bytes else 0
    pr.sent_entries(len(entries), size)
    pr.sent_commit = log.committed
    return True


def _send_snapshot(r: Raft, to: MemberID, pr: Progress) -> bool:
    if not pr.recent_active:
        r.logger.debug(f"ignore sending snapshot to {to:x} since it is not recently active")
        return False
    try:
        snapshot = r.log.snapshot()
    except SnapshotTemporarilyUnavailable:
        r.logger.debug(
            f"{r.id:x} failed to send snapshot to {to:x} because snapshot is temporarily "
            "unavailable"
        )
        return False
    if snapshot.is_empty():
        raise InvariantViolation("need non-empty snapshot")
    meta = snapshot.metadata
    r.logger.debug(
        f"{r.id:x} [firstindex: {r.log.first_index()}, commit: {r.log.committed}] sent "
        f"snapshot[index: {meta.index}, term: {meta.term}] to {to:x} [{pr}]"
    )
    pr.become_snapshot(meta.index)
    r.logger.debug(f"{r.id:x} paused sending replication messages to {to:x} [{pr}]")
    r.send(Message(MsgType.SNAP, to=to, snapshot=snapshot))
    return True


def maybe_commit(r: Raft) -> bool:
    """Commit what a quorum has, if it is of this term (section 5.4.2); true if the index moved."""
    return r.log.maybe_commit(EntryID(r.term, r.tracker.committed()))


# --- answers from members


def on_append_response(r: Raft, m: Message, pr: Progress) -> None:
    """A member, or this leader's own disk, has taken an append, or refused it."""
    pr.recent_active = True
    if m.reject:
        _on_rejection(r, m, pr)
        return
    # An answer that is no news still shows that a probed member can be replicated to.
    probe_answered = pr.state is ProgressState.PROBE and pr.match == m.index
    if not pr.maybe_update(m.index) and not probe_answered:
        return
    _advance_flow(r, m, pr)
    if maybe_commit(r):
        reads.on_commit(r)
        broadcast_append(r)
    elif m.from_ != r.id and pr.can_bump_commit(r.log.committed):
        send_append(r, m.from_)
    if m.from_ != r.id:
        # The window has moved: fill it.
        while send_entries(r, m.from_):
            pass
        if m.from_ == r.lead_transferee and r.last_index_is(pr.match):
            r.logger.info(f"{r.id:x} sent MsgTimeoutNow to {m.from_:x} after received MsgAppResp")
            r.send(Message(MsgType.TIMEOUT_NOW, to=m.from_))


def _advance_flow(r: Raft, m: Message, pr: Progress) -> None:
    if pr.state is ProgressState.PROBE:
        pr.become_replicate()
    elif pr.state is ProgressState.REPLICATE:
        pr.inflights.free_to(m.index)
    elif pr.match + 1 >= r.log.first_index():
        # Whatever snapshot the member took, and from wherever: the log continues from it.
        r.logger.debug(
            f"{r.id:x} recovered from needing snapshot, resumed sending replication messages "
            f"to {m.from_:x} [{pr}]"
        )
        pr.become_probe()
        pr.become_replicate()


def _on_rejection(r: Raft, m: Message, pr: Progress) -> None:
    """Go back to where the logs may agree, in as few probes as the two sides can.

    The member hints at (index, term) of an entry of its own. Where our term is larger than the
    hint's, our entry cannot be in its log, since terms never decrease along a log:

        index       1 2 3 4 5 6 7 8 9
        leader      1 3 3 3 5 5 5 5 5
        follower    1 1 1 1 2 2

    A probe at 9 is answered with the hint (6, term 2). Terms 5 and 3 are passed over, and the next
    probe is at 1: at most one probe for each term in the leader's log. The follower does the same
    on its side before it answers, for the case of a long tail with larger terms than ours.
    """
    r.logger.debug(
        f"{r.id:x} received MsgAppResp(rejected, hint: (index {m.reject_hint}, "
        f"term {m.log_term})) from {m.from_:x} for index {m.index}"
    )
    hint = m.reject_hint
    if m.log_term:
        hint = r.log.find_conflict_by_term(hint, m.log_term).index
    if pr.maybe_decrease(m.index, hint):
        r.logger.debug(f"{r.id:x} decreased progress of {m.from_:x} to [{pr}]")
        if pr.state is ProgressState.REPLICATE:
            pr.become_probe()
        send_append(r, m.from_)


def on_heartbeat_response(r: Raft, m: Message, pr: Progress) -> None:
    pr.recent_active = True
    pr.append_paused = False
    # Also to a member that has everything but is still probed: only an append's answer frees it.
    if pr.match < r.log.last_index() or pr.state is ProgressState.PROBE:
        send_append(r, m.from_)
    reads.on_heartbeat_response(r, m)


def on_snapshot_status(r: Raft, m: Message, pr: Progress) -> None:
    """The transport has delivered a snapshot, or failed to."""
    if pr.state is not ProgressState.SNAPSHOT:
        return
    if m.reject:
        # Or the probe would start after a snapshot that never arrived.
        pr.pending_snapshot = NO_INDEX
    pr.become_probe()
    outcome = "failed" if m.reject else "succeeded"
    r.logger.debug(
        f"{r.id:x} snapshot {outcome}, resumed sending replication messages to {m.from_:x} [{pr}]"
    )
    # Delivered: wait for the member's own answer. Failed: wait a heartbeat before the next try.
    pr.append_paused = True


def on_unreachable(r: Raft, m: Message, pr: Progress) -> None:
    """The transport could not deliver; appends sent ahead are likely lost."""
    if pr.state is ProgressState.REPLICATE:
        pr.become_probe()
    r.logger.debug(
        f"{r.id:x} failed to send message to {m.from_:x} because it is unreachable [{pr}]"
    )


def on_transfer_leader(r: Raft, m: Message, pr: Progress) -> None:
    """Hand leadership to ``m.from_`` once it has the whole log (thesis, section 3.10)."""
    to = m.from_
    if pr.is_learner:
        r.logger.debug(f"{r.id:x} is learner. Ignored transferring leadership")
        return
    if r.lead_transferee:
        if r.lead_transferee == to:
            r.logger.info(
                f"{r.id:x} [term {r.term}] transfer leadership to {to:x} is in progress, "
                f"ignores request to same node {to:x}"
            )
            return
        earlier, r.lead_transferee = r.lead_transferee, NONE
        r.logger.info(
            f"{r.id:x} [term {r.term}] abort previous transferring leadership to {earlier:x}"
        )
    if to == r.id:
        r.logger.debug(f"{r.id:x} is already leader. Ignored transferring leadership to self")
        return
    r.logger.info(f"{r.id:x} [term {r.term}] starts to transfer leadership to {to:x}")
    # It has one election time; after that this member goes on leading.
    r.election_elapsed = 0
    r.lead_transferee = to
    if r.last_index_is(pr.match):
        r.send(Message(MsgType.TIMEOUT_NOW, to=to))
        r.logger.info(
            f"{r.id:x} sends MsgTimeoutNow to {to:x} immediately as {to:x} already has "
            "up-to-date log"
        )
    else:
        send_append(r, to)
