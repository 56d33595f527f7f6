"""The values that raft works with: entries, messages, states, configuration changes.

They mirror etcd's ``raftpb`` package field by field. All but ``Entry`` and ``Message`` are
immutable, so that they can be shared without a copy. An ``Entry`` is written to exactly once, when
a leader gives it its term and index; from then on it is shared by the unstable log, the storage,
messages and the apply batch, and nobody may change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from kvorum.types import Index, MemberID, Term

NONE: Final = MemberID(0)
"""No member: no leader, no vote, no transferee."""

NO_LIMIT: Final = (1 << 64) - 1
"""The size limit that nothing reaches."""

LOCAL_APPEND_THREAD: Final = MemberID((1 << 64) - 1)
"""Where ``MsgStorageAppend`` goes: whoever writes this member's log."""

LOCAL_APPLY_THREAD: Final = MemberID((1 << 64) - 2)
"""Where ``MsgStorageApply`` goes: whoever applies this member's committed entries."""

NO_TERM: Final = Term(0)
NO_INDEX: Final = Index(0)


class Labelled(IntEnum):
    """An integer of the wire that prints as etcd's logs name it, such as ``MsgVoteResp``."""

    @property
    def label(self) -> str:
        return _PREFIX[type(self).__name__] + self.name.title().replace("_", "")

    def __str__(self) -> str:
        return self.label

    def __format__(self, spec: str) -> str:
        return format(self.label, spec)


_PREFIX: Final = {
    "EntryType": "Entry",
    "MsgType": "Msg",
    "StateType": "State",
    "ProgressState": "State",
    "ConfChangeType": "ConfChange",
    "ConfChangeTransition": "ConfChangeTransition",
}


class EntryType(Labelled):
    """What an entry's data is."""

    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class MsgType(Labelled):
    """What a message asks for or answers, as numbered on the wire."""

    HUP = 0
    BEAT = 1
    PROP = 2
    APP = 3
    APP_RESP = 4
    VOTE = 5
    VOTE_RESP = 6
    SNAP = 7
    HEARTBEAT = 8
    HEARTBEAT_RESP = 9
    UNREACHABLE = 10
    SNAP_STATUS = 11
    CHECK_QUORUM = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESP = 16
    PRE_VOTE = 17
    PRE_VOTE_RESP = 18
    STORAGE_APPEND = 19
    STORAGE_APPEND_RESP = 20
    STORAGE_APPLY = 21
    STORAGE_APPLY_RESP = 22
    FORGET_LEADER = 23


LOCAL_MSGS: Final = frozenset(
    {
        MsgType.HUP,
        MsgType.BEAT,
        MsgType.UNREACHABLE,
        MsgType.SNAP_STATUS,
        MsgType.CHECK_QUORUM,
        MsgType.STORAGE_APPEND,
        MsgType.STORAGE_APPEND_RESP,
        MsgType.STORAGE_APPLY,
        MsgType.STORAGE_APPLY_RESP,
    }
)
"""Messages that are never to be taken from the network."""

RESPONSE_MSGS: Final = frozenset(
    {
        MsgType.APP_RESP,
        MsgType.VOTE_RESP,
        MsgType.HEARTBEAT_RESP,
        MsgType.UNREACHABLE,
        MsgType.READ_INDEX_RESP,
        MsgType.PRE_VOTE_RESP,
        MsgType.STORAGE_APPEND_RESP,
        MsgType.STORAGE_APPLY_RESP,
    }
)
"""Messages that only a member of the configuration may send."""


class StateType(Labelled):
    """A member's role (section 5.1 of the Raft paper; pre-candidate: thesis, section 9.6)."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    PRE_CANDIDATE = 3


class ConfChangeType(Labelled):
    """What happens to one member."""

    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    ADD_LEARNER_NODE = 3


class ConfChangeTransition(Labelled):
    """How a configuration change passes through a joint configuration (thesis, section 4.3)."""

    AUTO = 0
    JOINT_IMPLICIT = 1
    JOINT_EXPLICIT = 2


class EntryID(NamedTuple):
    """An entry's place in the log; two logs agree up to an id that both have (section 5.3)."""

    term: Term
    index: Index  # type: ignore[assignment]  # hides tuple.index, which nobody misses


class Entry:
    """One log entry.

    ``local`` rides along in the memory of the member that proposed the entry (the decoded
    request); it is never encoded and never leaves the process.
    """

    __slots__ = ("data", "index", "local", "term", "type")

    def __init__(
        self,
        term: Term = NO_TERM,
        index: Index = NO_INDEX,
        type: EntryType = EntryType.NORMAL,
        data: bytes = b"",
        local: object = None,
    ) -> None:
        self.term = term
        self.index = index
        self.type = type
        self.data = data
        self.local = local

    def __eq__(self, other: object) -> bool:
        """Equal on the wire; what rides along locally does not count."""
        if not isinstance(other, Entry):
            return NotImplemented
        return (self.term, self.index, self.type, self.data) == (
            other.term,
            other.index,
            other.type,
            other.data,
        )

    __hash__ = None  # type: ignore[assignment]  # term and index are filled in later

    def __repr__(self) -> str:
        return f"Entry({self.term}/{self.index} {self.type} {self.data!r})"


class HardState(NamedTuple):
    """What must be on disk before a message that depends on it leaves (figure 2)."""

    term: Term = NO_TERM
    vote: MemberID = NONE
    commit: Index = NO_INDEX

    def is_empty(self) -> bool:
        return self == EMPTY_HARD_STATE


EMPTY_HARD_STATE: Final = HardState()


class SoftState(NamedTuple):
    """What an observer wants to know and nobody needs to persist."""

    lead: MemberID
    state: StateType


class ReadState(NamedTuple):
    """Once ``index`` is applied, the read that was asked for with ``context`` is linearizable."""

    index: Index  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    context: bytes


@dataclass(frozen=True, slots=True)
class ConfState:
    """Who is in the configuration; ``voters_outgoing`` is not empty while it is joint."""

    voters: tuple[MemberID, ...] = ()
    learners: tuple[MemberID, ...] = ()
    voters_outgoing: tuple[MemberID, ...] = ()
    learners_next: tuple[MemberID, ...] = ()
    auto_leave: bool = False

    def equivalent(self, other: ConfState) -> bool:
        """Whether both name the same members, in whatever order."""
        return self._sorted() == other._sorted()

    def _sorted(self) -> tuple[list[MemberID], ...]:
        return (
            sorted(self.voters),
            sorted(self.learners),
            sorted(self.voters_outgoing),
            sorted(self.learners_next),
            [MemberID(self.auto_leave)],
        )


@dataclass(frozen=True, slots=True)
class SnapshotMetadata:
    """The last entry that a snapshot replaces, and the configuration as of it."""

    conf_state: ConfState = ConfState()
    index: Index = NO_INDEX
    term: Term = NO_TERM


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state machine's state in place of the log up to ``metadata.index``."""

    data: bytes = b""
    metadata: SnapshotMetadata = SnapshotMetadata()

    def is_empty(self) -> bool:
        return self.metadata.index == 0


@dataclass(frozen=True, slots=True)
class ConfChangeSingle:
    """One member's change within a ``ConfChangeV2``."""

    type: ConfChangeType = ConfChangeType.ADD_NODE
    node_id: MemberID = NONE

    def __str__(self) -> str:
        return f"changes:{{type:{self.type} node_id:{self.node_id}}}"


@dataclass(frozen=True, slots=True)
class ConfChangeV2:
    """Any number of changes at once; without changes it leaves a joint configuration."""

    transition: ConfChangeTransition = ConfChangeTransition.AUTO
    changes: tuple[ConfChangeSingle, ...] = ()
    context: bytes = b""

    def as_v2(self) -> ConfChangeV2:
        return self

    def leaves_joint(self) -> bool:
        return self.transition is ConfChangeTransition.AUTO and not self.changes

    def enters_joint(self) -> bool:
        """More than one change, or an explicit wish, needs joint consensus."""
        return self.transition is not ConfChangeTransition.AUTO or len(self.changes) > 1

    def auto_leaves(self) -> bool:
        """Whether raft itself leaves the joint configuration as soon as it is applied."""
        return self.transition is not ConfChangeTransition.JOINT_EXPLICIT


@dataclass(frozen=True, slots=True)
class ConfChange:
    """One member's change in the first format; ``id`` is the proposer's request id."""

    type: ConfChangeType = ConfChangeType.ADD_NODE
    node_id: MemberID = NONE
    context: bytes = b""
    id: int = 0

    def as_v2(self) -> ConfChangeV2:
        change = ConfChangeSingle(self.type, self.node_id)
        return ConfChangeV2(changes=(change,), context=self.context)


AnyConfChange = ConfChange | ConfChangeV2


_FIELDS: Final = (
    "commit",
    "context",
    "entries",
    "from_",
    "index",
    "log_term",
    "reject",
    "reject_hint",
    "responses",
    "snapshot",
    "term",
    "to",
    "type",
    "vote",
)


class Message:
    """Any message of the protocol, between members or between a member and its own storage.

    Which fields count depends on the type; those of a type that does not use them stay zero.
    ``responses`` and ``vote`` are used only by the local storage messages.
    """

    __slots__ = _FIELDS

    def __init__(
        self,
        type: MsgType,
        to: MemberID = NONE,
        from_: MemberID = NONE,
        term: Term = NO_TERM,
        *,
        log_term: Term = NO_TERM,
        index: Index = NO_INDEX,
        entries: Sequence[Entry] = (),
        commit: Index = NO_INDEX,
        vote: MemberID = NONE,
        snapshot: Snapshot | None = None,
        reject: bool = False,
        reject_hint: Index = NO_INDEX,
        context: bytes = b"",
        responses: Sequence[Message] = (),
    ) -> None:
        self.type = type
        self.to = to
        self.from_ = from_
        self.term = term
        self.log_term = log_term
        self.index = index
        self.entries = entries
        self.commit = commit
        self.vote = vote
        self.snapshot = snapshot
        self.reject = reject
        self.reject_hint = reject_hint
        self.context = context
        self.responses = responses

    @property
    def hard_state(self) -> HardState:
        """What a ``MsgStorageAppend`` asks to persist; empty if it does not."""
        return HardState(self.term, self.vote, self.commit)

    def __repr__(self) -> str:
        shown = ", ".join(_nonzero_fields(self))
        return f"Message({self.from_:x}->{self.to:x} {self.type} term={self.term}, {shown})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return all(_field(self, name) == _field(other, name) for name in _FIELDS)

    __hash__ = None  # type: ignore[assignment]  # mutable


def _field(message: Message, name: str) -> object:
    value = getattr(message, name)
    return list(value) if name in ("entries", "responses") else value


def _nonzero_fields(message: Message) -> Iterable[str]:
    head = ("from_", "to", "type", "term")
    for name in _FIELDS:
        if name not in head and (value := getattr(message, name)):
            yield f"{name}={value!r}"


def is_local_target(member: MemberID) -> bool:
    """Whether ``member`` stands for this member's own storage."""
    return member >= LOCAL_APPLY_THREAD
