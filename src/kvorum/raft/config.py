"""The settings of one raft member."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random, SystemRandom

from kvorum.raft.logger import Logger, NullLogger
from kvorum.raft.read_only import ReadOnlyOption
from kvorum.raft.storage import Storage
from kvorum.raft.types import LOCAL_APPLY_THREAD, NO_INDEX, NO_LIMIT, NONE
from kvorum.types import Index, MemberID

_MIB = 1 << 20


@dataclass(slots=True)
class Config:
    """Times are in ticks, sizes in bytes. Raises ValueError for settings that cannot work.

    id, storage
        Who this member is, and where its log is.
    applied
        After a restart, the last index that the state machine has executed.
    election_tick, heartbeat_tick
        A follower campaigns after one to two election times without its leader; a leader sends a
        heartbeat every heartbeat time.
    async_storage_writes
        Hand storage work out as messages with responses (see the package) instead of ``advance``.
    max_size_per_msg
        The bound on an append's entries; 0 is one entry a message.
    max_committed_size_per_ready
        The bound on entries handed out to be applied and not yet acknowledged; 0 is the same as
        ``max_size_per_msg``.
    max_uncommitted_size
        A leader drops proposals beyond this much uncommitted payload; 0 is no bound.
    max_inflight_msgs, max_inflight_bytes
        How many appends, and how much payload, may be under way to a member; 0 bytes is no bound.
    check_quorum
        A leader that does not hear of a quorum within an election time steps down.
    pre_vote
        Ask whether an election could be won before disturbing a leader (thesis, section 9.6).
    read_only_option
        How reads are made safe. A lease needs ``check_quorum``.
    disable_proposal_forwarding
        A follower drops proposals instead of passing them to its leader.
    disable_conf_change_validation
        Append any configuration change, though it may not fit; for callers that check themselves.
    step_down_on_removal
        A leader that is removed or demoted becomes a follower as soon as it applies that.
    rng
        Where the election time-outs get their spread.
    """

    id: MemberID
    storage: Storage
    applied: Index = NO_INDEX
    election_tick: int = 10
    heartbeat_tick: int = 1
    async_storage_writes: bool = False
    max_size_per_msg: int = _MIB
    max_committed_size_per_ready: int = 0
    max_uncommitted_size: int = 0
    max_inflight_msgs: int = 512
    max_inflight_bytes: int = 0
    check_quorum: bool = False
    pre_vote: bool = False
    read_only_option: ReadOnlyOption = ReadOnlyOption.SAFE
    disable_proposal_forwarding: bool = False
    disable_conf_change_validation: bool = False
    step_down_on_removal: bool = False
    logger: Logger = field(default_factory=NullLogger)
    rng: Random = field(default_factory=SystemRandom)

    def __post_init__(self) -> None:
        for wrong, complaint in self._complaints():
            if wrong:
                raise ValueError(complaint)
        self.max_uncommitted_size = self.max_uncommitted_size or NO_LIMIT
        self.max_committed_size_per_ready = (
            self.max_committed_size_per_ready or self.max_size_per_msg
        )

    def _complaints(self) -> list[tuple[bool, str]]:
        lease = self.read_only_option is ReadOnlyOption.LEASE_BASED
        bytes_bound = self.max_inflight_bytes
        return [
            (self.id == NONE, "cannot use none as id"),
            (self.id >= LOCAL_APPLY_THREAD, "cannot use local target as id"),
            (self.heartbeat_tick <= 0, "heartbeat tick must be greater than 0"),
            (
                self.election_tick <= self.heartbeat_tick,
                "election tick must be greater than heartbeat tick",
            ),
            (self.max_inflight_msgs <= 0, "max inflight messages must be greater than 0"),
            (
                0 < bytes_bound < self.max_size_per_msg,
                "max inflight bytes must be >= max message size",
            ),
            (
                lease and not self.check_quorum,
                "CheckQuorum must be enabled when ReadOnlyOption is ReadOnlyLeaseBased",
            ),
        ]
