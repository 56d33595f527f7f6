"""What a leader knows of one member's log, and what it may send there next.

PROBE       where the logs agree is not known: one append at a time, until one is accepted
REPLICATE   known: appends are sent ahead of their answers, as many as ``Inflights`` allows
SNAPSHOT    the member needs entries that are compacted away: nothing is sent until the
            snapshot is answered for

PROBE -> REPLICATE      an append was accepted
REPLICATE -> PROBE      an append was rejected, or the member is unreachable
any -> SNAPSHOT         the next entry is compacted away
SNAPSHOT -> REPLICATE   the member acknowledged an index that the log continues from
SNAPSHOT -> PROBE       the transport reported how the snapshot went
"""

from __future__ import annotations

from collections import deque

from kvorum.raft.errors import InvariantViolation
from kvorum.raft.types import NO_INDEX, NO_LIMIT, Labelled
from kvorum.types import Index


class ProgressState(Labelled):
    """How a leader treats a member; see the module's text."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Inflights:
    """The appends sent and not yet acknowledged, each by its last index.

    At most ``max_count`` of them; and none more once ``max_bytes`` of payload are under way, so
    that the bound may be passed by one message. 0 bytes is no bound.
    """

    __slots__ = ("_bytes", "_sent", "max_bytes", "max_count")

    def __init__(self, max_count: int, max_bytes: int = 0) -> None:
        self.max_count = max_count
        self.max_bytes = max_bytes or NO_LIMIT
        self._sent: deque[tuple[Index, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def bytes(self) -> int:
        """Payload bytes under way; not counted while there is no bound."""
        return self._bytes

    def full(self) -> bool:
        return len(self._sent) >= self.max_count or self._bytes >= self.max_bytes

    def add(self, last: Index, size: int) -> None:
        """One more message; the indexes of consecutive calls grow."""
        if self.full():
            raise InvariantViolation("cannot add into a Full inflights")
        self._sent.append((last, size))
        self._bytes += size

    def free_to(self, index: Index) -> None:
        """Every message up to ``index`` has arrived."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self._bytes -= sent.popleft()[1]

    def clear(self) -> None:
        self._sent.clear()
        self._bytes = 0

    def copy(self) -> Inflights:
        twin = Inflights(self.max_count, self.max_bytes)
        twin._sent = self._sent.copy()
        twin._bytes = self._bytes
        return twin


class Progress:
    """One member's state. Invariant: ``match < next``; what lies between is under way.

    ``match`` is the last index known to be durable there. ``sent_commit`` is the highest commit
    index sent, so that a later one is sent at once only if it can be news. ``pending_snapshot`` is
    the index of the snapshot under way (then ``next`` follows it).
    """

    __slots__ = (
        "append_paused",
        "inflights",
        "is_learner",
        "match",
        "next",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        match: Index,
        next: Index,
        inflights: Inflights,
        *,
        is_learner: bool = False,
        recent_active: bool = False,
    ) -> None:
        self.match = match
        self.next = next
        self.inflights = inflights
        self.is_learner = is_learner
        self.recent_active = recent_active
        self.state = ProgressState.PROBE
        self.sent_commit = NO_INDEX
        self.pending_snapshot = NO_INDEX
        # An append that fills the window, or a probe, waits for an answer or a heartbeat's.
        self.append_paused = False

    def copy(self) -> Progress:
        """A copy that shares the in-flight window."""
        twin = Progress(
            self.match,
            self.next,
            self.inflights,
            is_learner=self.is_learner,
            recent_active=self.recent_active,
        )
        twin.state = self.state
        twin.sent_commit = self.sent_commit
        twin.pending_snapshot = self.pending_snapshot
        twin.append_paused = self.append_paused
        return twin

    def _enter(self, state: ProgressState) -> None:
        self.append_paused = False
        self.pending_snapshot = NO_INDEX
        self.state = state
        self.inflights.clear()

    def become_probe(self) -> None:
        """Find out where the logs agree, from ``match`` or from a snapshot that was delivered."""
        self.next = Index(max(self.match, self.pending_snapshot) + 1)
        self._enter(ProgressState.PROBE)
        self.sent_commit = min(self.sent_commit, Index(self.next - 1))

    def become_replicate(self) -> None:
        self._enter(ProgressState.REPLICATE)
        self.next = Index(self.match + 1)

    def become_snapshot(self, index: Index) -> None:
        """A snapshot as of ``index`` is on its way."""
        self._enter(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = Index(index + 1)
        self.sent_commit = index

    def paused(self) -> bool:
        """Whether no append may be sent now."""
        return self.append_paused or self.state is ProgressState.SNAPSHOT

    def sent_entries(self, count: int, size: int) -> None:
        """An append with ``count`` entries of ``size`` payload bytes was sent from ``next`` on."""
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next = Index(self.next + count)
                self.inflights.add(Index(self.next - 1), size)
            # With the window full, this message serves as a probe: one, then wait.
            self.append_paused = self.inflights.full()
        elif self.state is ProgressState.PROBE:
            if count:
                self.append_paused = True
        else:
            raise InvariantViolation(f"sending append in unhandled state {self.state}")

    def can_bump_commit(self, commit: Index) -> bool:
        """Whether ``commit`` can tell the member more than what it was sent already."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def maybe_update(self, index: Index) -> bool:
        """The member acknowledged ``index``; false if that is no news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = Index(index + 1)
        self.append_paused = False
        return True

    def maybe_decrease(self, rejected: Index, hint: Index) -> bool:
        """The append after ``rejected`` was refused, the logs may agree at ``hint``.

        Returns false for a rejection that is out of date: messages get reordered and repeated.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = Index(self.match + 1)
        else:
            # Outside replication one append is sent at a time, so that only its own answer counts.
            if rejected != self.next - 1:
                return False
            self.next = Index(max(min(rejected, hint + 1), self.match + 1))
            self.append_paused = False
        self.sent_commit = min(self.sent_commit, Index(self.next - 1))
        return True

    def __str__(self) -> str:
        words = [f"{self.state} match={self.match} next={self.next}"]
        if self.is_learner:
            words.append("learner")
        if self.paused():
            words.append("paused")
        if self.pending_snapshot:
            words.append(f"pendingSnap={self.pending_snapshot}")
        if not self.recent_active:
            words.append("inactive")
        if self.inflights:
            full = "[full]" if self.inflights.full() else ""
            words.append(f"inflight={len(self.inflights)}{full}")
        return " ".join(words)
