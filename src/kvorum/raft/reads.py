"""ReadIndex: the index that a linearizable read must wait for (thesis, section 6.4)."""

from __future__ import annotations

from typing import Final

from kvorum.raft.core import Raft
from kvorum.raft.heartbeat import broadcast_heartbeat
from kvorum.raft.read_only import ReadOnlyOption
from kvorum.raft.types import NONE, Message, MsgType, ReadState
from kvorum.types import Index

MAX_WAITING_READS: Final = 1 << 14
"""Reads that may wait for a leader's confirmation. A server asks for one at a time and repeats it;
this bound is there for members that ask without end. What is over it is dropped, as by a network.
"""


def on_read_index(r: Raft, m: Message) -> None:
    """A leader is asked for a read index.

    Until it has committed something in its term, its commit index may lag behind what was
    committed and answered for before. That holds for a sole voter too, here other than in etcd:
    after a crash the commit index on its disk may be an old one.
    """
    if r.committed_in_term():
        _confirm(r, m)
    elif len(r.pending_reads) < MAX_WAITING_READS:
        r.pending_reads.append(m)


def on_commit(r: Raft) -> None:
    """The commit index has moved: go on with the reads that came before the term's first commit."""
    if r.pending_reads and r.committed_in_term():
        waiting, r.pending_reads = r.pending_reads, []
        for m in waiting:
            _confirm(r, m)


def _confirm(r: Raft, m: Message) -> None:
    """Answer as soon as it is certain that nobody else leads."""
    lease = r.config.read_only_option is ReadOnlyOption.LEASE_BASED
    if lease or r.tracker.is_singleton():
        _answer(r, m, r.log.committed)
    elif len(r.read_only) < MAX_WAITING_READS:
        r.read_only.add(m, r.log.committed)
        r.read_only.acknowledge(r.id, r.read_only.context())
        broadcast_heartbeat(r)


def on_heartbeat_response(r: Raft, m: Message) -> None:
    """A member has repeated the number of a read: it took this leader for one until then."""
    if r.config.read_only_option is not ReadOnlyOption.SAFE or not m.context:
        return
    r.read_only.acknowledge(m.from_, m.context)
    answer_confirmed(r)


def answer_confirmed(r: Raft) -> None:
    """Answer the reads for which a quorum, perhaps a smaller one than before, stands."""
    for read in r.read_only.confirmed(r.tracker.config):
        _answer(r, read.request, read.index)


def _answer(r: Raft, request: Message, index: Index) -> None:
    """Tell whoever asked: this member through its next Ready, another by message."""
    if request.from_ in (NONE, r.id):
        r.read_states.append(ReadState(index, request.entries[0].data))
    else:
        r.send(
            Message(MsgType.READ_INDEX_RESP, to=request.from_, index=index, entries=request.entries)
        )


def on_read_index_response(r: Raft, m: Message) -> None:
    """The leader has answered a read that was passed on to it."""
    if len(m.entries) != 1:
        r.logger.error(
            f"{r.id:x} invalid format of MsgReadIndexResp from {m.from_:x}, "
            f"entries count: {len(m.entries)}"
        )
        return
    r.read_states.append(ReadState(m.index, m.entries[0].data))
