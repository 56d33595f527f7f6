"""Raft as a pure state machine, with all that etcd's own has.

The paper: "In Search of an Understandable Consensus Algorithm" (Ongaro, Ousterhout); the thesis:
"Consensus: Bridging Theory and Practice" (Ongaro). Sections are quoted where they are followed.

Nothing here knows a clock, a socket, a disk, a thread or a random source of its own: ``RawNode``
takes calls and messages, and gives out one ``Ready`` after the other. What a server owes it:

The contract of Ready
---------------------
1. **Persist**: snapshot, entries and hard state. An entry replaces whatever was stored at or after
   its index. If ``must_sync`` is false, none of it needs to be on disk before going on.
2. **Send** the messages, in order, after that. A leader's appends may leave at once, so that its
   disk and its followers' work side by side (thesis, 10.2.1). For every ``MsgSnap`` call
   ``report_snapshot``, for a member that cannot be reached ``report_unreachable``.
3. **Apply**: the snapshot, then the committed entries. For a configuration change call
   ``apply_conf_change``, or not, if it is to be cancelled.
4. **Advance**: call ``advance()``. Readies are handled in the order in which they came.

Persisted entries must be readable through ``Storage`` from the time of ``advance`` on.

With asynchronous storage writes
--------------------------------
Steps 1, 3 and 4 come as messages among ``Ready.messages``, and the next Ready may be taken at once:

- ``MsgStorageAppend``, to LOCAL_APPEND_THREAD: persist its snapshot, entries and ``hard_state``.
- ``MsgStorageApply``, to LOCAL_APPLY_THREAD: apply its entries.

When that is done (persisted: when it is durable and readable through ``Storage``), deliver the
message's ``responses``: those to this member with ``step``, the others to their peers. Without
responses nobody waits for durability. Messages to one target are handled in order and none is
lost; the two targets are independent. A committed entry is handed out only when it is durable here.

What follows for a server:

- A snapshot may be persisted, and with it replace the state machine, while older entries still wait
  to be applied: then pass over those at or below its index, configuration changes included.
- Work is independent, so that a snapshot of applied entries may reach the disk before the commit
  index does. On a restart the stored commit index is at least that of the snapshot.
- A member that has just been removed no longer knows itself: ``step`` raises StepPeerNotFound for
  its own responses. There is nothing to be done about it.

Where this departs from the paper: a configuration takes effect when its entry is applied, not when
it is appended; a vote is also granted by a learner; pre-vote, check-quorum and leases are options.
Where it departs from etcd's raft: a sole voter too answers reads only after the first commit of its
term, since the commit index on its disk may be an old one; a malformed append is ignored; waiting
reads are bounded, and answered as soon as a smaller configuration confirms them.
"""

from __future__ import annotations

from kvorum.raft.config import Config
from kvorum.raft.errors import (
    ConfChangeError,
    DecodeError,
    InvariantViolation,
    LogCompacted,
    LogUnavailable,
    ProposalDropped,
    RaftError,
    SnapshotOutOfDate,
    SnapshotTemporarilyUnavailable,
    StepLocalMessage,
    StepPeerNotFound,
)
from kvorum.raft.progress import Progress, ProgressState
from kvorum.raft.rawnode import Peer, RawNode
from kvorum.raft.read_only import ReadOnlyOption
from kvorum.raft.ready import Ready
from kvorum.raft.status import BasicStatus, Status
from kvorum.raft.storage import MemoryStorage, Storage
from kvorum.raft.types import (
    EMPTY_HARD_STATE,
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NO_LIMIT,
    NONE,
    AnyConfChange,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryID,
    EntryType,
    HardState,
    Message,
    MsgType,
    ReadState,
    Snapshot,
    SnapshotMetadata,
    SoftState,
    StateType,
    is_local_target,
)

__all__ = [
    "EMPTY_HARD_STATE",
    "LOCAL_APPEND_THREAD",
    "LOCAL_APPLY_THREAD",
    "NONE",
    "NO_LIMIT",
    "AnyConfChange",
    "BasicStatus",
    "ConfChange",
    "ConfChangeError",
    "ConfChangeSingle",
    "ConfChangeTransition",
    "ConfChangeType",
    "ConfChangeV2",
    "ConfState",
    "Config",
    "DecodeError",
    "Entry",
    "EntryID",
    "EntryType",
    "HardState",
    "InvariantViolation",
    "LogCompacted",
    "LogUnavailable",
    "MemoryStorage",
    "Message",
    "MsgType",
    "Peer",
    "Progress",
    "ProgressState",
    "ProposalDropped",
    "RaftError",
    "RawNode",
    "ReadOnlyOption",
    "ReadState",
    "Ready",
    "Snapshot",
    "SnapshotMetadata",
    "SnapshotOutOfDate",
    "SnapshotTemporarilyUnavailable",
    "SoftState",
    "StateType",
    "Status",
    "StepLocalMessage",
    "StepPeerNotFound",
    "Storage",
    "is_local_target",
]
