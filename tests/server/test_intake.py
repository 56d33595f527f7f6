"""What goes into the state machine, and when."""

from __future__ import annotations

import pytest
from server_kit import Caller

from kvorum import errors
from kvorum.pb import etcdserverpb as pb
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.config import Config
from kvorum.raft.rawnode import RawNode
from kvorum.raft.storage import MemoryStorage
from kvorum.raft.types import (
    ConfChange,
    ConfChangeType,
    ConfState,
    Entry,
    EntryType,
    Message,
    MsgType,
    Snapshot,
    SnapshotMetadata,
)
from kvorum.server import intake as module
from kvorum.server.intake import Intake
from kvorum.server.proposer import Proposer
from kvorum.server.request import RequestIds
from kvorum.types import Index, MemberID, Term

ME, LEADER, OTHER = MemberID(1), MemberID(2), MemberID(3)


class Bench:
    """A member among ``voters``, with what it sends and logs."""

    def __init__(self, *voters: MemberID) -> None:
        self.woken = 0
        self.proposer = Proposer(
            RequestIds(ME, 0), max_request_bytes=1000, wake=lambda: None, clock=lambda: 0.0
        )
        storage = MemoryStorage()
        state = ConfState(voters)
        storage.apply_snapshot(Snapshot(metadata=SnapshotMetadata(state, Index(1), Term(1))))
        self.node = RawNode(Config(id=ME, storage=storage))
        self.storage = storage
        self.connected = True
        self.intake = Intake(
            self.node, self.proposer, wake=self._wake, reaches=lambda member: self.connected
        )

    def _wake(self) -> None:
        self.woken += 1

    def run(self) -> list[Message]:
        """Carry out all that is asked for; what goes to others."""
        sent = []
        while self.node.has_ready():
            ready = self.node.ready()
            self.storage.append(ready.entries)
            sent += ready.messages
            for entry in ready.committed_entries:
                if entry.type is not EntryType.NORMAL:
                    self.node.apply_conf_change(ConfChange())
            self.node.advance()
        return sent

    def lead(self) -> Bench:
        self.node.campaign()
        self.run()
        return self

    def follow(self) -> Bench:
        self.node.step(Message(MsgType.HEARTBEAT, ME, LEADER, Term(5)))
        self.run()
        return self

    def put(self, key: str) -> Caller:
        caller = Caller()
        request = pb.PutRequest(key=key.encode())
        self.proposer.propose("put", request.SerializeToString(), request, caller)
        return caller

    def change(self, member: int) -> Caller:
        caller = Caller()
        kind = ConfChangeType.UPDATE_NODE
        self.proposer.propose_conf_change(ConfChange(kind, MemberID(member)), caller)
        return caller

    def logged(self) -> list[Entry]:
        last = self.storage.last_index()
        first = self.storage.first_index()
        return self.storage.entries(first, Index(last + 1), 1 << 30) if last >= first else []

    def changes(self) -> int:
        return sum(entry.type is not EntryType.NORMAL for entry in self.logged())


def prop(*data: bytes) -> Message:
    return Message(MsgType.PROP, ME, OTHER, entries=[Entry(data=one) for one in data])


def conf_prop(member: int) -> Message:
    kind, data = encode_conf_change(ConfChange(ConfChangeType.UPDATE_NODE, MemberID(member)))
    return Message(MsgType.PROP, ME, OTHER, entries=[Entry(type=kind, data=data)])


def test_what_others_propose_goes_with_what_is_proposed_here() -> None:
    bench = Bench(ME).lead()
    bench.put("own")
    bench.intake.receive(prop(b"x", b"y"))
    bench.intake.receive(prop(b"z"))
    assert bench.woken == 1
    bench.intake.step_messages()
    before = len(bench.logged())
    bench.intake.propose(writing=True)
    assert not bench.node.has_ready()  # a write is under way: they wait for its end
    bench.intake.propose(writing=False)
    bench.run()
    assert [entry.data for entry in bench.logged()[before:]][1:] == [b"x", b"y", b"z"]


def test_without_a_leader_entries_wait() -> None:
    bench = Bench(ME, LEADER, OTHER)
    caller = bench.put("a")
    bench.intake.propose(writing=False)
    assert (caller.answers, bench.run()) == ([], [])
    bench.follow()
    bench.intake.propose(writing=True)  # what goes to the leader has no write here to wait for
    (message,) = bench.run()
    assert (message.type, message.to, len(message.entries)) == (MsgType.PROP, LEADER, 1)
    assert message.entries[0].data in bench.proposer.forwarded


def test_what_would_not_reach_the_leader_waits() -> None:
    """Sent into nowhere it would be lost; so it goes to the next leader."""
    bench = Bench(ME, LEADER, OTHER).follow()
    bench.connected = False
    bench.put("a")
    bench.intake.propose(writing=False)
    assert not bench.run()
    bench.connected = True
    bench.intake.propose(writing=False)
    (message,) = bench.run()
    assert message.type is MsgType.PROP


def test_what_has_waited_too_long_is_not_proposed_any_more() -> None:
    bench = Bench(ME, LEADER, OTHER)
    caller, change = bench.put("a"), bench.change(7)
    bench.proposer.expire(1.0)
    assert caller.failure == change.failure == errors.Timeout.message
    bench.follow()
    bench.intake.propose(writing=False)
    assert all(not m.entries or m.entries[0].type for m in bench.run())


def test_one_change_of_the_members_at_a_time() -> None:
    bench = Bench(ME).lead()
    bench.change(7)
    bench.change(8)
    bench.intake.receive(conf_prop(9))
    bench.intake.step_messages()
    for proposed in (1, 2, 3, 3):
        bench.intake.propose(writing=False)
        bench.intake.propose(writing=False)  # the one before is not applied yet
        bench.run()
        assert bench.changes() == proposed


def test_a_change_nobody_waits_for_is_not_proposed() -> None:
    bench = Bench(ME).lead()
    bench.change(7)
    bench.change(8)
    bench.intake.propose(writing=False)
    bench.proposer.expire(1.0)
    bench.run()
    bench.intake.propose(writing=False)
    bench.run()
    assert bench.changes() == 1


def test_who_leads_no_more_passes_on_what_it_held() -> None:
    bench = Bench(ME).lead()
    bench.change(7)
    bench.change(8)
    bench.intake.receive(prop(b"x"))
    bench.intake.step_messages()
    bench.intake.propose(writing=True)
    bench.run()
    bench.follow()
    bench.intake.propose(writing=False)
    (message,) = bench.run()
    assert message.to == LEADER
    assert [entry.type for entry in message.entries] == [
        EntryType.NORMAL,
        EntryType.CONF_CHANGE,
        EntryType.CONF_CHANGE,
    ]
    assert not bench.proposer.forwarded


def test_while_the_office_is_handed_over_all_wait() -> None:
    bench = Bench(ME, LEADER, OTHER)
    bench.node.campaign()
    bench.run()
    vote = Message(MsgType.VOTE_RESP, ME, LEADER, bench.node.raft.term)
    bench.node.step(vote)
    bench.run()
    bench.node.transfer_leader(LEADER)
    caller = bench.put("a")
    bench.intake.receive(prop(b"x"))
    bench.intake.step_messages()
    bench.intake.propose(writing=False)
    assert all(not message.entries for message in bench.run() if message.type is MsgType.PROP)
    bench.follow()
    bench.intake.propose(writing=False)
    (message,) = [m for m in bench.run() if m.type is MsgType.PROP]
    assert len(message.entries) == 2
    assert caller.answers == []


def test_what_others_propose_is_kept_for_the_next_leader_and_not_for_ever() -> None:
    bench = Bench(ME, LEADER, OTHER)
    bench.intake.receive(prop(b"x"))
    bench.intake.step_messages()
    for _ in range(20):
        bench.intake.propose(writing=False)
        bench.intake.tick()
    bench.follow()
    bench.intake.propose(writing=False)
    (message,) = bench.run()
    assert [entry.data for entry in message.entries] == [b"x"]
    bench.node.forget_leader()
    bench.intake.receive(prop(b"y"))
    bench.intake.step_messages()
    for _ in range(21):
        bench.intake.tick()
    assert bench.intake.lost == 1
    bench.follow()
    bench.intake.propose(writing=False)
    assert not bench.run()


@pytest.mark.parametrize(
    "message",
    [
        Message(MsgType.HUP, ME, OTHER),  # none that comes from others
        Message(MsgType.APP_RESP, ME, MemberID(99), Term(2), index=Index(1)),  # a stranger
    ],
)
def test_what_raft_refuses_is_ignored(message: Message) -> None:
    bench = Bench(ME, LEADER, OTHER)
    bench.intake.receive(message)
    bench.intake.step_messages()
    assert not bench.run()


def test_all_of_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MESSAGES", 2)
    monkeypatch.setattr(module, "MAX_FOREIGN", 3)
    monkeypatch.setattr(module, "MAX_CONF_CHANGES", 1)
    bench = Bench(ME).lead()
    for _ in range(3):
        bench.intake.receive(prop(b"x", b"y"))
    assert bench.intake.lost == 1
    bench.intake.step_messages()
    assert bench.intake.lost == 2
    for member in (7, 8):
        bench.intake.receive(conf_prop(member))
    bench.intake.step_messages()
    assert bench.intake.lost == 3
    bench.intake.propose(writing=False)
    bench.run()
    assert bench.changes() == 1
