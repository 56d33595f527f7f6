"""The member as its server drives it: calls go in, a ``Ready`` comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from kvorum.raft import election, membership
from kvorum.raft.config import Config
from kvorum.raft.core import Raft
from kvorum.raft.errors import InvariantViolation, RaftError, StepLocalMessage, StepPeerNotFound
from kvorum.raft.ready import (
    Ready,
    storage_append,
    storage_append_response,
    storage_apply,
    storage_apply_response,
)
from kvorum.raft.status import BasicStatus, Status, basic_status, status
from kvorum.raft.step import step, tick
from kvorum.raft.types import (
    EMPTY_HARD_STATE,
    LOCAL_APPLY_THREAD,
    LOCAL_MSGS,
    NONE,
    RESPONSE_MSGS,
    AnyConfChange,
    ConfChange,
    ConfState,
    Entry,
    HardState,
    Message,
    MsgType,
    StateType,
)
from kvorum.types import Index, MemberID, Term


class Peer(NamedTuple):
    """A member of a cluster that is started for the first time."""

    id: MemberID
    context: bytes = b""


class RawNode:
    """One raft member. Not safe for threads: every call is made by the thread that owns it."""

    __slots__ = (
        "_async",
        "_on_advance",
        "_previous_hard_state",
        "_previous_lead",
        "_previous_state",
        "raft",
    )

    def __init__(self, config: Config) -> None:
        """Start, or restart, from what ``config.storage`` holds."""
        self.raft: Final = _start(config)
        self._async: Final = config.async_storage_writes
        self._previous_lead = self.raft.lead
        self._previous_state = self.raft.state
        self._previous_hard_state = self.raft.hard_state()
        # Answers from the storage that ``advance`` gives in place of a storage.
        self._on_advance: list[Message] = []

    def bootstrap(self, peers: Sequence[Peer]) -> None:
        """Begin the log of a new cluster with the changes that add ``peers``, all committed.

        Every first member does the same, so that their logs agree. Raises RaftError if there is a
        log already, ValueError if there are no peers.
        """
        r = self.raft
        if not peers:
            raise ValueError("must provide at least one peer to Bootstrap")
        if r.log.last_index():
            raise RaftError("can't bootstrap a nonempty Storage")
        # The first Ready shall tell the hard state, whatever it is.
        self._previous_hard_state = EMPTY_HARD_STATE
        r.become_follower(Term(1), NONE)
        entries = []
        for index, peer in enumerate(peers, 1):
            entry = membership.proposal(ConfChange(node_id=peer.id, context=peer.context))
            entry.term, entry.index = Term(1), Index(index)
            entries.append(entry)
        r.log.append(entries)
        r.log.committed = Index(len(entries))
        # They are applied once more when the server gets them; until then it may campaign.
        for peer in peers:
            membership.apply_conf_change(r, ConfChange(node_id=peer.id))

    # --- calls

    def tick(self) -> None:
        """One unit of time has passed."""
        tick(self.raft)

    def campaign(self) -> None:
        """Campaign now, as after an election time-out."""
        election.campaign(self.raft)

    def propose(self, entries: Sequence[Entry]) -> None:
        """Propose ``entries``, whose term and index the leader sets; raises ProposalDropped.

        All of them are taken or none. A follower passes them on to its leader; then what rides
        along with an entry is lost, and nobody tells whether it arrived.
        """
        r = self.raft
        if r.state is StateType.LEADER:
            membership.propose(r, entries)
        else:
            step(r, Message(MsgType.PROP, from_=r.id, entries=entries))

    def propose_conf_change(self, cc: AnyConfChange | None, local: object = None) -> None:
        """Propose a configuration change; None leaves a joint one. Raises ProposalDropped.

        One at a time: a change that does not fit is replaced by an empty entry.
        """
        self.propose([membership.proposal(cc, local)])

    def apply_conf_change(self, cc: AnyConfChange) -> ConfState:
        """Put a committed change in force, at the time its entry is applied.

        A server that refuses to carry it out does not call this, or sets the ids in it to 0.
        Raises ConfChangeError if the change does not fit.
        """
        return membership.apply_conf_change(self.raft, cc)

    def step(self, m: Message) -> None:
        """Take a message from a peer, or a response of the own storage.

        Raises StepLocalMessage and StepPeerNotFound for messages that must not come from outside,
        ProposalDropped for a proposal that cannot be taken.
        """
        kind = m.type
        if m.from_ < LOCAL_APPLY_THREAD:
            if kind in LOCAL_MSGS:
                raise StepLocalMessage
            if kind in RESPONSE_MSGS and m.from_ not in self.raft.tracker.progress:
                raise StepPeerNotFound
        step(self.raft, m)

    def read_index(self, context: bytes) -> None:
        """Ask for the index that a linearizable read must wait for.

        It comes in a Ready with the same ``context``; or never, if there is no leader, or if a
        message is lost: ask again.
        """
        step(self.raft, Message(MsgType.READ_INDEX, entries=[Entry(data=context)]))

    def transfer_leader(self, to: MemberID) -> None:
        """Try to have ``to`` lead; the server watches whether it does."""
        step(self.raft, Message(MsgType.TRANSFER_LEADER, from_=to))

    def forget_leader(self) -> None:
        """Make a follower forget its leader, so that it may vote for somebody else at once."""
        step(self.raft, Message(MsgType.FORGET_LEADER))

    def report_unreachable(self, member: MemberID) -> None:
        """The last message to ``member`` could not be delivered."""
        step(self.raft, Message(MsgType.UNREACHABLE, from_=member))

    def report_snapshot(self, member: MemberID, ok: bool) -> None:
        """A snapshot for ``member`` was delivered, or could not be. Call it for every one."""
        step(self.raft, Message(MsgType.SNAP_STATUS, from_=member, reject=not ok))

    def status(self) -> Status:
        return status(self.raft)

    def basic_status(self) -> BasicStatus:
        return basic_status(self.raft)

    # --- Ready

    def has_ready(self) -> bool:
        """Whether ``ready`` would return any work."""
        r = self.raft
        log = r.log
        return bool(
            r.msgs
            or r.msgs_after_append
            or log.unstable.has_next_entries()
            or log.has_next_committed(not self._async)
            or r.read_states
            or r.lead != self._previous_lead
            or r.state is not self._previous_state
            or self._hard_state_changed()
            or log.unstable.next_snapshot() is not None
        )

    def _hard_state_changed(self) -> bool:
        r = self.raft
        was = self._previous_hard_state
        return r.log.committed != was.commit or r.term != was.term or r.vote != was.vote

    def ready(self) -> Ready:
        """Take the outstanding work; the caller has to carry it out as the package says."""
        r = self.raft
        log = r.log
        allow_unstable = not self._async
        if self._on_advance:
            raise InvariantViolation("two accepted Ready structs without call to Advance")
        rd = Ready(
            log.unstable.next_entries(),
            log.next_committed(allow_unstable),
            r.msgs,
            r.read_states,
        )
        rd.snapshot = log.unstable.next_snapshot()
        self._take_states(rd)
        if self._async:
            for work in (storage_append(r, rd), storage_apply(r, rd)):
                if work is not None:
                    rd.messages.append(work)
        else:
            self._defer_to_advance(rd)
        r.msgs = []
        r.msgs_after_append = []
        r.read_states = []
        log.unstable.accept_in_progress()
        if rd.committed_entries:
            log.accept_applying(rd.committed_entries, allow_unstable)
        return rd

    def _take_states(self, rd: Ready) -> None:
        r = self.raft
        rd.must_sync = bool(rd.entries)
        if r.lead != self._previous_lead or r.state is not self._previous_state:
            rd.soft_state = r.soft_state()
            self._previous_lead, self._previous_state = rd.soft_state
        if self._hard_state_changed():
            was, now = self._previous_hard_state, r.hard_state()
            if now.vote != was.vote or now.term != was.term:
                rd.must_sync = True
            rd.hard_state = self._previous_hard_state = now

    def _defer_to_advance(self, rd: Ready) -> None:
        """Messages of this Ready wait until it is persisted; the own answers until ``advance``."""
        r = self.raft
        for m in r.msgs_after_append:
            (self._on_advance if m.to == r.id else rd.messages).append(m)
        for done in (storage_append_response(r, rd), storage_apply_response(r, rd)):
            if done is not None:
                self._on_advance.append(done)

    def advance(self) -> None:
        """The last Ready is persisted and applied. Not to be called with asynchronous writes."""
        if self._async:
            raise InvariantViolation("Advance must not be called when using AsyncStorageWrites")
        steps, self._on_advance = self._on_advance, []
        for m in steps:
            step(self.raft, m)


def _start(config: Config) -> Raft:
    r = Raft(config)
    log = r.log
    hard_state, conf_state = config.storage.initial_state()
    membership.restore(r, conf_state)
    if hard_state != EMPTY_HARD_STATE:
        _load(r, hard_state)
    if config.applied:
        log.applied_to(config.applied)
    r.become_follower(r.term, NONE)
    last = log.last_id()
    peers = ",".join(f"{voter:x}" for voter in r.tracker.config.all_voters())
    r.logger.info(
        f"newRaft {r.id:x} [peers: [{peers}], term: {r.term}, commit: {log.committed}, "
        f"applied: {log.applied}, lastindex: {last.index}, lastterm: {last.term}]"
    )
    return r


def _load(r: Raft, state: HardState) -> None:
    log = r.log
    if not log.committed <= state.commit <= log.last_index():
        raise InvariantViolation(
            f"{r.id:x} state.commit {state.commit} is out of range "
            f"[{log.committed}, {log.last_index()}]"
        )
    log.committed = state.commit
    r.term = state.term
    r.vote = state.vote
