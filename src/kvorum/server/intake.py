"""What waits to go into the state machine: messages of other members, and entries to be proposed.

Messages gather for one turn of the loop. Entries gather longer: on the leader, what comes during a
write waits for its end and makes a larger batch, with what other members have forwarded; where
there is no leader they wait for one, or until their time is up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from kvorum.log import get_logger
from kvorum.raft.errors import ProposalDropped, StepLocalMessage, StepPeerNotFound
from kvorum.raft.rawnode import RawNode
from kvorum.raft.types import NONE, Entry, EntryType, Message, MsgType, StateType
from kvorum.server.proposer import Proposal, Proposer
from kvorum.types import MemberID

MAX_MESSAGES: Final = 16_384
"""Messages that may wait for the next turn. As on a network, what is over it is lost. A member has
no more than 512 appends under way to another."""

MAX_FOREIGN: Final = 100_000
"""Entries of other members that may wait; what is over it is lost."""

MAX_CONF_CHANGES: Final = 1_000
"""Changes of the members that may wait for one another."""

lg = get_logger()


class Intake:
    """Feeds one state machine. ``wake`` is called when the first message of a turn has come, and
    the owner then calls `step_messages` and `propose`. ``reaches`` tells whether a member is
    connected. ``lost`` counts what was over a bound."""

    def __init__(
        self,
        node: RawNode,
        proposer: Proposer,
        *,
        wake: Callable[[], None],
        reaches: Callable[[MemberID], bool],
    ) -> None:
        self.lost = 0
        self._node = node
        self._proposer = proposer
        self._wake = wake
        self._reaches = reaches
        self._messages: list[Message] = []
        self._foreign: list[Entry] = []
        self._foreign_ticks = 0
        self._patience = 2 * node.raft.config.election_tick
        self._conf_changes: deque[Entry] = deque()
        self._leading = False

    # Messages

    def receive(self, message: Message) -> None:
        """Take a message of another member."""
        if len(self._messages) >= MAX_MESSAGES:
            self.lost += 1
            return
        self._messages.append(message)
        if len(self._messages) == 1:
            self._wake()

    def step_messages(self) -> None:
        """Hand over all messages. What others propose to this leader waits, to go into the log
        together with what is proposed here; or to go to the next leader, if there is none now."""
        if not self._messages:
            return
        raft = self._node.raft
        messages, self._messages = self._messages, []
        for message in messages:
            if message.type is MsgType.PROP and raft.lead in (raft.id, NONE):
                self._take_foreign(message.entries)
            else:
                self.step(message)

    def step(self, message: Message) -> None:
        """Hand over one message."""
        try:
            self._node.step(message)
        except (ProposalDropped, StepLocalMessage, StepPeerNotFound) as error:
            # A proposal that nobody can take now is lost, and its proposer's time runs out. The
            # others come from members that were removed, or are in error.
            lg.debug("ignored a message", message_type=message.type.label, error=repr(error))

    def tick(self) -> None:
        """Time passes. What others wait for is not kept for ever: they may have given up."""
        if not self._foreign:
            self._foreign_ticks = 0
            return
        self._foreign_ticks += 1
        if self._foreign_ticks > self._patience:
            self.lost += len(self._foreign)
            self._foreign = []

    def _take_foreign(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.type is not EntryType.NORMAL:
                self._add_conf_changes([entry])
            elif len(self._foreign) < MAX_FOREIGN:
                self._foreign.append(entry)
            else:
                self.lost += 1

    # Proposals

    def propose(self, *, writing: bool) -> None:
        """Propose what was gathered, if it is the time. ``writing``: this member's log is being
        written."""
        raft = self._node.raft
        leading = raft.state is StateType.LEADER
        if leading is not self._leading:
            self._leading = leading
            if not leading:
                self._proposer.demoted()
        if raft.lead == NONE or raft.lead_transferee:
            return
        if writing if leading else not self._reaches(raft.lead):
            return  # to a leader that is gone it would be lost; the next one may get it
        proposer = self._proposer
        own = proposer.take_batch()
        foreign, self._foreign = self._foreign, []
        changes = self._take_conf_changes(leading)
        entries = [*own, *foreign, *changes] if foreign or changes else own
        if not entries:
            return
        try:
            self._node.propose(entries)
        except ProposalDropped:
            proposer.put_back(own)
            self._foreign = foreign
            self._add_conf_changes(changes)
        else:
            if not leading:
                proposer.forward(own)

    def _take_conf_changes(self, leading: bool) -> list[Entry]:
        """What may be proposed now. On the leader that is one change at a time: raft would make
        nothing of the others, and nobody would tell who proposed them."""
        proposer, waiting = self._proposer, self._conf_changes
        if proposer.conf_changes:
            changes, proposer.conf_changes = proposer.conf_changes, []
            self._add_conf_changes(changes)
        if not waiting:
            return []
        if not leading:
            self._conf_changes = deque()
            return list(waiting)
        raft = self._node.raft
        while waiting and raft.pending_conf_index <= raft.log.applied:
            entry = waiting.popleft()
            if self._is_wanted(entry):
                return [entry]
        return []

    def _add_conf_changes(self, changes: Sequence[Entry]) -> None:
        room = MAX_CONF_CHANGES - len(self._conf_changes)
        self.lost += max(0, len(changes) - room)
        self._conf_changes.extend(changes[:room])

    def _is_wanted(self, entry: Entry) -> bool:
        """Whether its proposer may still be waiting."""
        proposal = entry.local
        return not isinstance(proposal, Proposal) or proposal.id in self._proposer.waiting
