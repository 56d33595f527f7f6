"""One batch of work for the server, and the storage messages that carry it."""

from __future__ import annotations

from kvorum.raft.core import Raft
from kvorum.raft.types import (
    EMPTY_HARD_STATE,
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    Entry,
    HardState,
    Message,
    MsgType,
    ReadState,
    Snapshot,
    SoftState,
)


class Ready:
    """What has to be done before, or while, the state machine goes on; see the package.

    soft_state
        Set if leader or role have changed.
    hard_state
        To be persisted; empty if it has not changed.
    read_states
        Reads that may be served once their index is applied.
    entries
        To be persisted; whatever is stored at or after the first of them is replaced.
    snapshot
        To be persisted, and to replace the state machine.
    committed_entries
        To be applied.
    messages
        To be sent, in order; with asynchronous storage writes also the work for the storage.
    must_sync
        Whether what is to be persisted must be durable before any message that waits for it goes.
    """

    __slots__ = (
        "committed_entries",
        "entries",
        "hard_state",
        "messages",
        "must_sync",
        "read_states",
        "snapshot",
        "soft_state",
    )

    def __init__(
        self,
        entries: list[Entry],
        committed_entries: list[Entry],
        messages: list[Message],
        read_states: list[ReadState],
    ) -> None:
        self.entries = entries
        self.committed_entries = committed_entries
        self.messages = messages
        self.read_states = read_states
        self.soft_state: SoftState | None = None
        self.hard_state: HardState = EMPTY_HARD_STATE
        self.snapshot: Snapshot | None = None
        self.must_sync = False


def storage_append(r: Raft, rd: Ready) -> Message | None:
    """The message that has ``rd``'s log work done, None if there is none.

    Its responses are what may leave only then, and last the word to this member itself. That order
    matters: this member's own acknowledgement of the entries looks their term up, which is cheaper
    while they are still in the unstable log.
    """
    hard_state = rd.hard_state
    if not (rd.entries or hard_state != EMPTY_HARD_STATE or rd.snapshot or r.msgs_after_append):
        return None
    responses = r.msgs_after_append
    done = storage_append_response(r, rd)
    if done is not None:
        responses = [*responses, done]
    return Message(
        MsgType.STORAGE_APPEND,
        to=LOCAL_APPEND_THREAD,
        from_=r.id,
        term=hard_state.term,
        vote=hard_state.vote,
        commit=hard_state.commit,
        entries=rd.entries,
        snapshot=rd.snapshot,
        responses=responses,
    )


def storage_append_response(r: Raft, rd: Ready) -> Message | None:
    """The word that everything up to and including ``rd`` is durable, None if nothing waits for it.

    It carries the term it was made in, and is ignored in a later one: leaders of different terms
    may have the same place in the log written A, B, A, and the word on the first A must not be
    taken for one on the last while B is still to come. Since a word may so be lost, each one stands
    for the whole unstable log and not only for ``rd.entries``; the new term's own write, which
    always comes, then brings the next word.
    """
    unstable = r.log.unstable
    if not unstable.entries and rd.snapshot is None:
        return None
    m = Message(
        MsgType.STORAGE_APPEND_RESP,
        to=r.id,
        from_=LOCAL_APPEND_THREAD,
        term=r.term,
        snapshot=rd.snapshot,
    )
    if unstable.entries:
        m.log_term, m.index = r.log.last_id()
    return m


def storage_apply(r: Raft, rd: Ready) -> Message | None:
    """The message that has ``rd``'s committed entries applied, None if there are none."""
    done = storage_apply_response(r, rd)
    if done is None:
        return None
    return Message(
        MsgType.STORAGE_APPLY,
        to=LOCAL_APPLY_THREAD,
        from_=r.id,
        entries=rd.committed_entries,
        responses=[done],
    )


def storage_apply_response(r: Raft, rd: Ready) -> Message | None:
    """The word that ``rd``'s committed entries are applied. It is of no term, as they are."""
    if not rd.committed_entries:
        return None
    return Message(
        MsgType.STORAGE_APPLY_RESP,
        to=r.id,
        from_=LOCAL_APPLY_THREAD,
        entries=rd.committed_entries,
    )
