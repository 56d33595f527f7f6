"""One member's state, its change of roles, and what it sends.

This is the bottom of the state machine: it knows nothing of what a message means. The modules
beside it are functions on ``Raft``, one duty each; ``step`` says which message goes to which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvorum.raft.config import Config
from kvorum.raft.errors import InvariantViolation
from kvorum.raft.log import RaftLog
from kvorum.raft.read_only import ReadOnly
from kvorum.raft.sizes import payload_size
from kvorum.raft.tracker import ProgressTracker
from kvorum.raft.types import (
    NO_INDEX,
    NO_LIMIT,
    NONE,
    Entry,
    HardState,
    Message,
    MsgType,
    ReadState,
    SoftState,
    StateType,
)
from kvorum.types import Index, MemberID, Term

# Messages about an election carry the term that is voted on; the rest carries the sender's own.
_TERM_SET_BY_CALLER: Final = frozenset(
    {MsgType.VOTE, MsgType.VOTE_RESP, MsgType.PRE_VOTE, MsgType.PRE_VOTE_RESP}
)

# Proposals and reads are on their way to whoever leads, in whatever term.
_WITHOUT_TERM: Final = frozenset({MsgType.PROP, MsgType.READ_INDEX})

# These promise that something is durable: a vote, or entries. They leave once all that was unstable
# when they were made is on disk (thesis, section 3.8). Rejections are held back too: they are rare,
# and may rest on a state that is not durable either.
_AFTER_APPEND: Final = frozenset({MsgType.APP_RESP, MsgType.VOTE_RESP, MsgType.PRE_VOTE_RESP})


class Raft:
    """All of a member's state but what it keeps in the log and the tracker.

    ``msgs`` may leave at once; ``msgs_after_append`` wait for the storage, and may be addressed to
    this member itself: that is how a leader counts its own disk among the quorum.

    ``pending_conf_index`` is at or after the newest configuration change that may not be applied
    yet; the next one may be proposed when it is. ``uncommitted_size`` never counts too much.
    """

    __slots__ = (
        "config",
        "election_elapsed",
        "heartbeat_elapsed",
        "id",
        "is_learner",
        "lead",
        "lead_transferee",
        "log",
        "logger",
        "msgs",
        "msgs_after_append",
        "pending_conf_index",
        "pending_reads",
        "randomized_election_timeout",
        "read_only",
        "read_states",
        "state",
        "term",
        "tracker",
        "uncommitted_size",
        "vote",
    )

    def __init__(self, config: Config) -> None:
        self.config: Final = config
        self.id: Final = config.id
        self.logger: Final = config.logger
        self.log: Final = RaftLog(
            config.storage, config.logger, config.max_committed_size_per_ready
        )
        self.tracker = ProgressTracker(config.max_inflight_msgs, config.max_inflight_bytes)
        self.state = StateType.FOLLOWER
        self.term = Term(0)
        self.vote = NONE
        self.lead = NONE
        self.lead_transferee = NONE
        self.is_learner = False
        self.msgs: list[Message] = []
        self.msgs_after_append: list[Message] = []
        self.read_states: list[ReadState] = []
        self.read_only = ReadOnly()
        # Reads that came before this leader had committed anything in its term.
        self.pending_reads: list[Message] = []
        self.pending_conf_index = NO_INDEX
        self.uncommitted_size = 0
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_election_timeout = config.election_tick

    def soft_state(self) -> SoftState:
        return SoftState(self.lead, self.state)

    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.committed)

    # --- sending

    def send(self, m: Message) -> None:
        """Queue ``m`` for the next Ready, with sender and term filled in."""
        kind = m.type
        if not m.from_:
            m.from_ = self.id
        if kind in _TERM_SET_BY_CALLER:
            if not m.term:
                raise InvariantViolation(f"term should be set when sending {kind}")
        elif m.term:
            raise InvariantViolation(f"term should not be set when sending {kind} (was {m.term})")
        elif kind not in _WITHOUT_TERM:
            m.term = self.term
        if kind in _AFTER_APPEND:
            self.msgs_after_append.append(m)
        elif m.to == self.id:
            raise InvariantViolation(f"message should not be self-addressed when sending {kind}")
        else:
            self.msgs.append(m)

    # --- the leader's log

    def append(self, entries: Sequence[Entry]) -> bool:
        """Give ``entries`` their place at the end of the leader's log.

        False, with nothing changed, if there would be too much uncommitted payload.
        """
        if not self._count_uncommitted(entries):
            self.logger.warn(
                f"{self.id:x} appending new entries to log would exceed uncommitted entry size "
                "limit; dropping proposal"
            )
            return False
        term = self.term
        index = self.log.last_index()
        for entry in entries:
            index += 1  # type: ignore[assignment]  # a call of Index for every entry is too dear
            entry.term = term
            entry.index = index
        self.log.append(entries)
        # The leader's own acknowledgement, delivered when the entries are durable here.
        self.send(Message(MsgType.APP_RESP, to=self.id, index=index))
        return True

    def _count_uncommitted(self, entries: Sequence[Entry]) -> bool:
        limit = self.config.max_uncommitted_size
        if limit >= NO_LIMIT:
            return True
        size = payload_size(entries)
        # Empty entries always pass: a new leader's first, and the one that leaves a joint
        # configuration. So does anything while nothing is outstanding, however large.
        if self.uncommitted_size and size and self.uncommitted_size + size > limit:
            return False
        self.uncommitted_size += size
        return True

    def release_uncommitted(self, entries: Sequence[Entry]) -> None:
        """``entries`` were applied. What an earlier leader appended was never counted."""
        if self.config.max_uncommitted_size < NO_LIMIT:
            self.uncommitted_size = max(0, self.uncommitted_size - payload_size(entries))

    # --- roles

    def _reset(self, term: Term) -> None:
        if self.term != term:
            self.term = term
            self.vote = NONE
        self.lead = NONE
        self.lead_transferee = NONE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        timeout = self.config.election_tick
        self.randomized_election_timeout = timeout + self.config.rng.randrange(timeout)
        self.tracker.reset_votes()
        self.tracker.reset_progress(self.id, self.log.last_index())
        self.pending_conf_index = NO_INDEX
        self.uncommitted_size = 0
        self.read_only = ReadOnly()

    def become_follower(self, term: Term, lead: MemberID) -> None:
        self._reset(term)
        self.lead = lead
        self.state = StateType.FOLLOWER
        self.logger.info(f"{self.id:x} became follower at term {self.term}")

    def become_candidate(self) -> None:
        """Begin a new term and vote for oneself in it (section 5.2)."""
        self._require(self.state is not StateType.LEADER, "leader -> candidate")
        self._reset(Term(self.term + 1))
        self.vote = self.id
        self.state = StateType.CANDIDATE
        self.logger.info(f"{self.id:x} became candidate at term {self.term}")

    def become_pre_candidate(self) -> None:
        """Ask for support without touching term or vote (thesis, section 9.6)."""
        self._require(self.state is not StateType.LEADER, "leader -> pre-candidate")
        self.tracker.reset_votes()
        self.lead = NONE
        self.state = StateType.PRE_CANDIDATE
        self.logger.info(f"{self.id:x} became pre-candidate at term {self.term}")

    def become_leader(self) -> None:
        """Lead, beginning with an empty entry: only entries of the own term commit (5.4.2)."""
        self._require(self.state is not StateType.FOLLOWER, "follower -> leader")
        self._reset(self.term)
        self.lead = self.id
        self.state = StateType.LEADER
        own = self.tracker.progress[self.id]
        own.become_replicate()
        own.recent_active = True
        # An unapplied configuration change may be in the log; it is at the end at the latest.
        self.pending_conf_index = self.log.last_index()
        self.append([Entry()])
        self.logger.info(f"{self.id:x} became leader at term {self.term}")

    def _require(self, legal: bool, transition: str) -> None:
        if not legal:
            raise InvariantViolation(f"invalid transition [{transition}]")

    # --- questions

    def promotable(self) -> bool:
        """Whether this member may campaign: a voter, and not in the middle of a snapshot."""
        own = self.tracker.progress.get(self.id)
        return own is not None and not own.is_learner and self.log.unstable.snapshot is None

    def committed_in_term(self) -> bool:
        """Whether something of the current term is committed; only then the index is current."""
        return self.log.term(self.log.committed) == self.term

    def last_index_is(self, index: Index) -> bool:
        return self.log.last_index() == index
