"""A cluster at the mercy of one seed, and the properties that must hold whatever happens.

Messages are lost, repeated and reordered, members crash with writes under way, links fail,
memberships change. Between members everything travels as bytes. Safety is checked at every step;
at the end all is repaired, and the cluster must get going again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random

from raftlab.sim_member import BASE, MEMBERS, Options, SimMember

from kvorum.raft import (
    ConfChange,
    ConfChangeError,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    Entry,
    EntryType,
    Message,
    MsgType,
    ProposalDropped,
    RaftError,
    StateType,
    StepPeerNotFound,
)
from kvorum.raft.codec import decode_entry_conf_change, decode_message, encode_message
from kvorum.types import Index, MemberID, Term


class Simulation:
    """``run`` raises AssertionError, or the core's InvariantViolation, when something is wrong."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.options = Options.draw(self.rng)
        self.members = {
            number: SimMember(number, self.options, seed * 100 + number) for number in MEMBERS
        }
        self.network: list[bytes] = []
        self.blocked: set[tuple[MemberID, MemberID]] = set()
        self.proposed = 0
        # What the checkers remember.
        self.leaders: dict[int, MemberID] = {}
        self.votes: dict[tuple[int, MemberID], MemberID] = {}
        self.history: dict[int, tuple[Term, bytes]] = {5: (Term(1), BASE.data)}
        self.reads: dict[bytes, int] = {}
        self.answered = 0

    # --- running

    def run(self, steps: int) -> None:
        actions, weights = zip(*self._actions(), strict=True)
        for action in self.rng.choices(actions, weights, k=steps):
            action()
            self._check_leaders()
        self._repair()

    def _actions(self) -> list[tuple[Callable[[], None], float]]:
        trouble = self.options.trouble
        return [
            (self._ready, 30),
            (self._append, 20),
            (self._apply, 15),
            (self._deliver, 60),
            (self._tick, 20),
            (self._propose, 5),
            (self._read, 1),
            (self._compact, 0.7),
            (self._change, 0.4),
            (self._transfer, 0.2),
            (self._restart, 0.5),
            (self._heal, 0.15),
            (self._lose, 1.5 * trouble),
            (self._repeat, 1.5 * trouble),
            (self._crash, 0.25 * trouble),
            (self._block, 0.1 * trouble),
            (self._isolate, 0.1 * trouble),
            (self._disturb, 0.2 * trouble),
        ]

    def _some(self) -> SimMember | None:
        up = [member for member in self.members.values() if member.up]
        return self.rng.choice(up) if up else None

    def _leader_or_some(self) -> SimMember | None:
        leaders = [m for m in self.members.values() if m.up and _leads(m)]
        return self.rng.choice(leaders) if leaders and self.rng.random() < 0.7 else self._some()

    # --- what a server does

    def _ready(self) -> None:
        member = self._some()
        if member is not None and member.node.has_ready():
            self._take_ready(member)

    def _take_ready(self, member: SimMember) -> None:
        rd = member.node.ready()
        for read in rd.read_states:
            self._check_read(read.context, read.index)
        if not self.options.async_writes:
            member.persist(rd.hard_state, rd.entries, rd.snapshot)
            if rd.must_sync or rd.snapshot is not None:
                member.flush()
            self._send(member, rd.messages)
            self._apply_entries(member, rd.committed_entries)
            member.node.advance()
            return
        for m in rd.messages:
            if m.type is MsgType.STORAGE_APPEND:
                member.append_work.append(m)
            elif m.type is MsgType.STORAGE_APPLY:
                member.apply_work.append(m)
            else:
                self._send(member, [m])

    def _append(self) -> None:
        member = self._some()
        if member is None or not member.append_work:
            return
        m = member.append_work.popleft()
        member.persist(m.hard_state, m.entries, m.snapshot)
        if m.responses:
            member.flush()
        self._respond(member, m)

    def _apply(self) -> None:
        member = self._some()
        if member is None or not member.apply_work:
            return
        m = member.apply_work.popleft()
        self._apply_entries(member, m.entries)
        self._respond(member, m)

    def _respond(self, member: SimMember, m: Message) -> None:
        for response in m.responses:
            if response.to == member.id:
                # A member that has just been removed no longer knows itself.
                with suppress(StepPeerNotFound):
                    member.node.step(response)
            else:
                self._send(member, [response])

    def _apply_entries(self, member: SimMember, entries: Sequence[Entry]) -> None:
        for entry in entries:
            # A snapshot may have overtaken them.
            if entry.index <= member.applied:
                continue
            assert entry.index == member.applied + 1, "a gap in the applied entries"
            if entry.type is not EntryType.NORMAL:
                self._apply_change(member, entry)
            text = b"%b %d %d %b" % (member.digest, entry.index, entry.term, entry.data)
            member.digest = hashlib.sha256(text).digest()
            member.applied = entry.index
            self._check_applied(member, entry)

    def _apply_change(self, member: SimMember, entry: Entry) -> None:
        # Every member comes to the same verdict at this entry.
        with suppress(ConfChangeError):
            change = decode_entry_conf_change(entry)
            member.conf_state = member.node.apply_conf_change(change)

    # --- the network

    def _send(self, member: SimMember, messages: Sequence[Message]) -> None:
        for m in messages:
            self._check_promise(member, m)
            if (member.id, m.to) not in self.blocked:
                self.network.append(encode_message(m))
            elif m.type is MsgType.SNAP:
                member.node.report_snapshot(m.to, False)
            else:
                member.node.report_unreachable(m.to)

    def _deliver(self) -> None:
        if self.network:
            # Mostly the oldest ones: a network that always reorders gets little done.
            oldest = min(len(self.network), 4)
            place = self.rng.randrange(oldest if self.rng.random() < 0.8 else len(self.network))
            self._step(decode_message(self.network.pop(place)))

    def _step(self, m: Message) -> None:
        receiver = self.members[m.to]
        if receiver.up:
            with suppress(RaftError):
                receiver.node.step(m)
        if m.type is MsgType.SNAP:
            sender = self.members[m.from_]
            if sender.up:
                sender.node.report_snapshot(m.to, receiver.up)

    def _lose(self) -> None:
        if self.network:
            m = decode_message(self.network.pop(self.rng.randrange(len(self.network))))
            if m.type is MsgType.SNAP and self.members[m.from_].up:
                self.members[m.from_].node.report_snapshot(m.to, False)

    def _repeat(self) -> None:
        if self.network:
            self.network.append(self.rng.choice(self.network))

    def _block(self) -> None:
        one, other = self.rng.sample(MEMBERS, 2)
        self.blocked.add((one, other))
        if self.rng.random() < 0.7:
            self.blocked.add((other, one))

    def _isolate(self) -> None:
        member = self._leader_or_some()
        if member is not None:
            for other in MEMBERS:
                self.blocked |= {(member.id, other), (other, member.id)}

    def _heal(self) -> None:
        self.blocked.clear()

    # --- calls

    def _tick(self) -> None:
        member = self._some()
        if member is not None:
            member.node.tick()

    def _propose(self) -> None:
        member = self._leader_or_some()
        if member is None:
            return
        entries = []
        for _ in range(self.rng.randrange(1, 4)):
            self.proposed += 1
            entries.append(Entry(data=b"%d" % self.proposed * self.rng.randrange(1, 9)))
        self._try_propose(member, entries)

    def _try_propose(self, member: SimMember, entries: list[Entry]) -> bool:
        try:
            member.node.propose(entries)
        except ProposalDropped:
            return False
        return True

    def _change(self) -> None:
        member = self._leader_or_some()
        if member is None:
            return
        kinds = [
            ConfChangeType.ADD_NODE,
            ConfChangeType.REMOVE_NODE,
            ConfChangeType.ADD_LEARNER_NODE,
        ]
        singles = tuple(
            ConfChangeSingle(self.rng.choice(kinds), target)
            for target in self.rng.sample(MEMBERS, self.rng.randrange(1, 4))
        )
        voters = member.node.status().config.voters
        removed = {one.node_id for one in singles if one.type is not ConfChangeType.ADD_NODE}
        if len(voters - removed) < 2:
            return
        change: ConfChange | ConfChangeV2 | None
        if self.rng.random() < 0.3:
            change = ConfChange(singles[0].type, singles[0].node_id)
        elif self.rng.random() < 0.3:
            change = None
        else:
            change = ConfChangeV2(self.rng.choice(list(ConfChangeTransition)), singles)
        with suppress(ProposalDropped):
            member.node.propose_conf_change(change)

    def _transfer(self) -> None:
        member = self._leader_or_some()
        if member is not None:
            member.node.transfer_leader(self.rng.choice(MEMBERS))

    def _disturb(self) -> None:
        member = self._some()
        if member is not None:
            self.rng.choice([member.node.forget_leader, member.node.campaign])()

    def _read(self) -> None:
        member = self._leader_or_some()
        if member is not None:
            context = b"read %d" % len(self.reads)
            self.reads[context] = max(self.history)
            member.node.read_index(context)

    def _compact(self) -> None:
        member = self._some()
        if member is not None:
            member.compact()

    def _crash(self) -> None:
        member = self._some()
        if member is not None:
            member.up = False

    def _restart(self) -> None:
        down = [member for member in self.members.values() if not member.up]
        if down:
            self.rng.choice(down).start()

    # --- safety

    def _check_leaders(self) -> None:
        """Election safety: at most one leader a term. Leader completeness: it has all commits."""
        for member in self.members.values():
            if not member.up or not _leads(member):
                continue
            term = member.node.raft.term
            if term in self.leaders:
                assert self.leaders[term] == member.id, f"two leaders in term {term}"
                continue
            self.leaders[term] = member.id
            log = member.node.raft.log
            for index, (committed_term, _) in self.history.items():
                if index >= log.first_index() and committed_term < term:
                    assert log.term(Index(index)) == committed_term, (
                        f"leader {member.id} of term {term} lacks committed entry {index}"
                    )

    def _check_applied(self, member: SimMember, entry: Entry) -> None:
        """State machine safety: whoever applies an index applies the same there."""
        seen = self.history.setdefault(entry.index, (entry.term, member.digest))
        assert seen == (entry.term, member.digest), f"entry {entry.index} differs on {member.id}"

    def _check_promise(self, member: SimMember, m: Message) -> None:
        """What a member says is durable is on its disk: one vote a term, and entries."""
        disk = member.disk
        if m.type is MsgType.VOTE_RESP and not m.reject:
            earlier = self.votes.setdefault((m.term, member.id), m.to)
            assert earlier == m.to, f"{member.id} voted twice in term {m.term}"
            assert disk.hard_state.term >= m.term, "a vote that is not on disk"
        if m.type is MsgType.APP_RESP and not m.reject:
            assert disk.hard_state.term >= m.term, "a term that is not on disk"
            last = disk.entries[-1].index if disk.entries else disk.snapshot.metadata.index
            # A later leader may have replaced the entries before they were written at all. That is
            # as good: whoever elected it has not taken them, or they could not be committed.
            replaced = disk.hard_state.term > m.term
            assert replaced or last >= m.index, "an entry not on disk"

    def _check_read(self, context: bytes, index: Index) -> None:
        """Linearizable reads: nothing that anybody had applied before the read is missed."""
        assert index >= self.reads[context], f"{context!r} got the stale index {index}"
        self.answered += 1

    # --- liveness

    def _repair(self) -> None:
        """With everything up and connected, a leader is found and everybody catches up."""
        self.blocked.clear()
        for member in self.members.values():
            if not member.up:
                member.start()
        for _ in range(400):
            for member in self.members.values():
                member.node.tick()
            self._drain()
            if self._settled():
                return
        raise AssertionError("the cluster did not recover")

    def _drain(self) -> None:
        """Carry out all work and deliver all messages there are now, in order."""
        for _ in range(20):
            for member in self.members.values():
                while member.node.has_ready():
                    self._take_ready(member)
                while member.append_work:
                    m = member.append_work.popleft()
                    member.persist(m.hard_state, m.entries, m.snapshot)
                    member.flush()
                    self._respond(member, m)
                while member.apply_work:
                    m = member.apply_work.popleft()
                    self._apply_entries(member, m.entries)
                    self._respond(member, m)
            messages, self.network = self.network, []
            for data in messages:
                self._step(decode_message(data))
            self._check_leaders()

    def _settled(self) -> bool:
        """A leader has committed something new, and every member of its configuration has it."""
        leaders = [member for member in self.members.values() if _leads(member)]
        if not leaders:
            return False
        leader = max(leaders, key=lambda member: member.node.raft.term)
        config = leader.node.status().config
        if leader.id not in config.voters | config.outgoing:
            # Without step_down_on_removal it is the server's duty to stop it.
            leader.start()
            return False
        if config.joint():
            # One that was entered explicitly is to be left explicitly.
            self._leave_joint(leader)
            return False
        if not self._try_propose(leader, [Entry(data=b"the end")]):
            return False
        self._drain()
        everybody = [self.members[one] for one in config.voters | config.learners]
        return all(member.applied == leader.applied == max(self.history) for member in everybody)

    def _leave_joint(self, leader: SimMember) -> None:
        with suppress(ProposalDropped):
            leader.node.propose_conf_change(None)


def _leads(member: SimMember) -> bool:
    return member.node.raft.state is StateType.LEADER
