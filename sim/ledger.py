"""What every member must agree to, looked at after every event.

One book for the whole run: who voted for whom and who led, what was committed at each index, what
each entry did. Whatever a member does that does not fit what is in it already is a violation, and
so is a promise that it does not remember after a restart. The properties have the names of figure 3
of the Raft paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

from kvorum.raft.types import NO_LIMIT, Entry, EntryType, Message, MsgType, StateType
from kvorum.types import Index, MemberID
from sim.process import Process

if TYPE_CHECKING:
    from kvorum.raft.core import Raft
    from kvorum.raft.tracker import TrackedConfig
    from sim.cluster import Cluster
    from sim.member import Member


@dataclass(slots=True)
class Life:
    """A running process, and where it stood when it was last looked at."""

    member: Member
    raft: Raft
    term: int
    commit: int
    applied: int
    revision: int
    config: TrackedConfig
    led: int = 0


@dataclass(slots=True)
class Promises:
    """What a member has told others to be safe on its disk."""

    term: int = 0
    acked_term: int = 0
    acked_index: int = 0


@dataclass(slots=True)
class Book:
    """What is true of the whole cluster, for ever."""

    leaders: dict[int, MemberID] = field(default_factory=dict)
    votes: dict[tuple[MemberID, int], MemberID] = field(default_factory=dict)
    terms: dict[int, int] = field(default_factory=dict)
    """Of each committed entry, by index."""
    decided: dict[int, int] = field(default_factory=dict)
    """The newest entry that was committed in a term, by that term."""
    contents: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Of each applied entry: term, type, checksum."""
    before: dict[tuple[int, int], int] = field(default_factory=dict)
    """The term of the entry before one, by that one's index and term."""
    revisions: dict[int, int] = field(default_factory=dict)
    """After each applied entry, as far as it was looked at."""
    records: dict[bytes, bytes] = field(default_factory=dict)
    """Of each revision of the key space, by its key."""
    configurations: dict[int, object] = field(default_factory=dict)
    revoked: dict[int, float] = field(default_factory=dict)
    """When a lease was first revoked anywhere, by its id."""


class Ledger:
    """See the module. ``wrong`` has the violations."""

    def __init__(self, cluster: Cluster) -> None:
        self.book = Book()
        self.wrong: list[str] = []
        self.applied_entries = 0
        self._cluster = cluster
        self._lives: dict[Process, Life] = {}
        self._promises: dict[MemberID, Promises] = {}

    def complain(self, text: str) -> None:
        if len(self.wrong) < 20:
            self.wrong.append(f"at {self._cluster.world.now:.6f}: {text}")
            self._cluster.trace(f"WRONG {text}")

    # Processes come and go

    def booted(self, member: Member) -> None:
        """A process has read its disk and has not yet begun to take part."""
        server, process = member.server, member.process
        assert server is not None
        assert process is not None
        raft: Raft = server.raft._node.raft
        life = Life(
            member,
            raft,
            raft.term,
            raft.log.committed,
            server.applier.index,
            server.store.rev,
            raft.tracker.config,
        )
        self._lives[process] = life
        self._check_memory(member, raft)
        self._listen_to_applier(life, server)
        self._listen_to_lessor(server)

    def ended(self, member: Member) -> None:
        assert member.process is not None
        self._lives.pop(member.process, None)

    def is_removed(self, member: Member) -> bool:
        """Whether the cluster has decided to be without a member."""
        removed = [m.server.cluster.removed for m in self._cluster.members if m.alive and m.server]
        return any(member.id in each for each in removed)

    def may_fail(self, member: Member, error: BaseException) -> bool:
        """Whether that a member ends is in order: it was removed, its disk has failed, or it could
        not join yet."""
        reasons = ("CannotJoin", "Removed")
        return self.is_removed(member) or member.disk.failed or type(error).__name__ in reasons

    def _check_memory(self, member: Member, raft: Raft) -> None:
        """Durability: what it has told others it still knows."""
        promised = self._promises.setdefault(raft.id, Promises())
        if raft.term < promised.term:
            self.complain(f"{member} forgot term {promised.term}, it is back at {raft.term}")
        if raft.term == promised.acked_term and raft.log.last_index() < promised.acked_index:
            self.complain(
                f"{member} forgot entries: it acknowledged {promised.acked_index} in term"
                f" {promised.acked_term}, its log ends at {raft.log.last_index()}"
            )
        log = raft.log
        entries = log.entries_from(log.first_index(), NO_LIMIT)
        self._match(f"{member} starts with", log.term(Index(log.first_index() - 1)), entries)
        voted = self.book.votes.get((raft.id, raft.term))
        if voted is not None and raft.vote != voted:
            self.complain(f"{member} forgot its vote for {voted:x} in term {raft.term}")

    # Messages

    def sent(self, message: Message) -> None:
        """Everything that leaves a member."""
        kind = message.type
        if kind is MsgType.APP:
            self._match(f"{message.from_:x} sends", message.log_term, message.entries)
        elif kind is MsgType.APP_RESP and not message.reject:
            promised = self._promises.setdefault(message.from_, Promises())
            promised.term = max(promised.term, message.term)
            if message.term > promised.acked_term:
                promised.acked_term, promised.acked_index = message.term, message.index
            promised.acked_index = max(promised.acked_index, message.index)
        elif kind is MsgType.VOTE_RESP and not message.reject:
            promised = self._promises.setdefault(message.from_, Promises())
            promised.term = max(promised.term, message.term)
            self._vote(message.from_, message.term, message.to)

    def _match(self, who: str, term_before: int | None, entries: Iterable[Entry]) -> None:
        """Log matching: wherever an entry of some index and term is, the one before it is the
        same."""
        before = self.book.before
        for entry in entries:
            known = before.setdefault((entry.index, entry.term), term_before or 0)
            if term_before is not None and known != term_before:
                self.complain(
                    f"{who} {entry.term}/{entry.index} after term {term_before}, elsewhere it"
                    f" comes after term {known}"
                )
                return
            term_before = entry.term

    def _vote(self, member: MemberID, term: int, candidate: MemberID) -> None:
        """Election safety: one vote a term."""
        first = self.book.votes.setdefault((member, term), candidate)
        if first != candidate:
            self.complain(f"{member:x} voted for {first:x} and {candidate:x} in term {term}")

    # After every event

    def after_turn(self, process: Process) -> None:
        life = self._lives.get(process)
        if life is None:
            return
        raft = life.raft
        commit = raft.log.committed
        if raft.term != life.term:
            if raft.term < life.term:
                self.complain(f"{life.member} went from term {life.term} to {raft.term}")
            life.term = raft.term
        if commit != life.commit:
            self._committed(life, commit)
        life.config = raft.tracker.config
        if raft.state is StateType.LEADER and life.led != raft.term:
            life.led = raft.term
            self._elected(life)

    def _elected(self, life: Life) -> None:
        """Election safety and leader completeness."""
        raft, term = life.raft, life.raft.term
        first = self.book.leaders.setdefault(term, raft.id)
        self._cluster.trace(f"{life.member} leads in term {term}")
        if first != raft.id:
            self.complain(f"{first:x} and {raft.id:x} both lead in term {term}")
        self._vote(raft.id, term, raft.id)
        self._has_all(life)

    def _has_all(self, life: Life) -> None:
        """What was committed in earlier terms. A member that stood still may learn that it was
        elected when there is a leader of a later term, of whose entries it knows nothing."""
        log, terms = life.raft.log, self.book.terms
        earlier = [index for term, index in self.book.decided.items() if term < life.raft.term]
        for index in range(max(log.first_index(), 1), max(earlier, default=0) + 1):
            if index in terms and log.term(index) != terms[index]:  # type: ignore[arg-type]
                self.complain(
                    f"{life.member} leads in term {life.raft.term} with term"
                    f" {log.term(index)} at {index}, committed with {terms[index]}"  # type: ignore[arg-type]
                )
                return

    def _committed(self, life: Life, commit: int) -> None:
        """State machine safety, as early as can be: the terms at committed indexes agree."""
        if commit < life.commit:
            self.complain(f"{life.member} went from commit {life.commit} to {commit}")
        log, terms = life.raft.log, self.book.terms
        grown = False
        for index in range(max(life.commit + 1, log.first_index()), commit + 1):
            term = log.term(index)  # type: ignore[arg-type]
            if term is None:
                continue
            known = terms.get(index)
            if known is None:
                terms[index] = term
                grown = True
            elif known != term:
                self.complain(f"{life.member} commits {term}/{index}, others have {known}/{index}")
        life.commit = commit
        if grown:
            # Seen first at the leader: others hear of it in a later event, or in a later term.
            decided, present = self.book.decided, life.raft.term
            decided[present] = max(commit, decided.get(present, 0))
            self._leaders_have(commit)
            if life.raft.state is StateType.LEADER:
                self._decided(life, commit)

    def _decided(self, life: Life, index: int) -> None:
        """A leader commits entries of its own term (5.4.2), which a majority has on disk: of the
        members before this event or after it. Those who are down may have it or not."""
        raft = life.raft
        term = raft.log.term(index)  # type: ignore[arg-type]
        if term != raft.term:
            self.complain(f"{life.member} in term {raft.term} commits {term}/{index} by counting")
        running = {each.raft.id: each.raft for each in self._lives.values()}
        has = {each: _has(other, index, term) for each, other in running.items()}
        if not any(_may_decide(config, has) for config in (life.config, raft.tracker.config)):
            self.complain(f"{life.member} commits {term}/{index}, which no majority has on disk")

    def _leaders_have(self, index: int) -> None:
        """Leader completeness, for those elected before the commit was heard of."""
        term = self.book.terms.get(index)
        for life in self._lives.values():
            raft = life.raft
            if raft.state is not StateType.LEADER or term is None or raft.term <= term:
                continue
            mine = raft.log.term(index)  # type: ignore[arg-type]
            if (mine is not None and mine != term) or raft.log.last_index() < index:
                self.complain(
                    f"{life.member} leads in term {raft.term} without the committed {term}/{index}"
                )

    # What entries do

    def _listen_to_applier(self, life: Life, server: Any) -> None:
        apply: Callable[..., Any] = server.applier.apply

        def wrapped(entries: Sequence[Entry], change_conf: Callable[..., Any]) -> Any:
            before = server.applier.index
            if before != life.applied:
                self._jumped(life, before, server.store.rev)
            configurations = []

            def changing(change: object) -> Any:
                configurations.append(change_conf(change))
                return configurations[-1]

            result = apply(entries, changing)
            self._applied(life, entries, server)
            self._configured(life, entries, configurations)
            return result

        server.applier.apply = wrapped

    def _jumped(self, life: Life, index: int, revision: int) -> None:
        """A snapshot has replaced the state."""
        self._cluster.trace(f"{life.member} has a snapshot of {index} in place of {life.applied}")
        if index < life.applied:
            self.complain(f"{life.member} went from entry {life.applied} to {index}")
        life.applied, life.revision = index, revision
        self._agree(life, self.book.revisions, index, revision)

    def _applied(self, life: Life, entries: Sequence[Entry], server: Any) -> None:
        """State machine safety: everybody applies the same, in order, with the same effect."""
        book = self.book
        if entries[0].index != life.applied + 1:
            self.complain(f"{life.member} applies {entries[0].index} after {life.applied}")
        for entry in entries:
            content = (entry.term, int(entry.type), crc32(entry.data))
            known = book.contents.get(entry.index)
            if known is None:
                book.contents[entry.index] = content
                self.applied_entries += 1
            elif known != content:
                self.complain(
                    f"{life.member} applies {content} at {entry.index}, others {known}"
                    " (term, type, checksum)"
                )
        life.applied = entries[-1].index
        self._agree(life, book.revisions, life.applied, server.store.rev)
        if server.store.rev < life.revision:
            self.complain(f"{life.member} went from revision {life.revision} to {server.store.rev}")
        life.revision = server.store.rev
        for key, _, record, _ in server.store.changes:
            if book.records.setdefault(key, record) != record:
                self.complain(f"{life.member} has another record at revision {key.hex()}")

    def _configured(
        self, life: Life, entries: Sequence[Entry], configurations: Sequence[object]
    ) -> None:
        """Each change of the members leads everywhere to the same ones."""
        changes = [entry.index for entry in entries if entry.type is not EntryType.NORMAL]
        for index, configuration in zip(changes, configurations, strict=True):
            self._agree(life, self.book.configurations, index, configuration)

    def _agree(self, life: Life, known: dict[int, Any], index: int, mine: object) -> None:
        first = known.setdefault(index, mine)
        if first != mine:
            self.complain(f"{life.member} is at {mine} after entry {index}, others at {first}")

    def _listen_to_lessor(self, server: Any) -> None:
        revoke: Callable[..., Any] = server.lessor.revoke

        def wrapped(lease: int) -> Any:
            keys = revoke(lease)
            self.book.revoked.setdefault(lease, self._cluster.world.now)
            return keys

        server.lessor.revoke = wrapped


def _has(raft: Raft, index: int, term: int | None) -> bool:
    """Whether a member has an entry on its disk, or a snapshot in place of it.

    Its storage is asked, which gets what is on the disk: the state machine passes over the word on
    an append of an older term, and goes on counting those entries as unstable.
    """
    if index < raft.log.first_index():
        return True
    storage = raft.log._storage
    return index <= storage.last_index() and storage.term(Index(index)) == term


def _may_decide(config: TrackedConfig, has: dict[MemberID, bool]) -> bool:
    """Whether so many may have it that each half of a configuration has a majority."""
    halves = filter(None, (config.voters, config.outgoing))
    return all(sum(has.get(v, True) for v in half) > len(half) // 2 for half in halves)
