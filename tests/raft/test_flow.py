"""How much a leader sends: limits, windows, probes, snapshots, and what makes it try again."""

from __future__ import annotations

import pytest
from raftlab.driver import BASE, Driver, ids, log_of, lone, network, storage_with

from kvorum.raft import (
    ConfState,
    InvariantViolation,
    LogCompacted,
    MemoryStorage,
    Message,
    MsgType,
    ProgressState,
    ProposalDropped,
    RaftError,
    Snapshot,
    SnapshotMetadata,
    SnapshotTemporarilyUnavailable,
    StateType,
    following,
)
from kvorum.raft.sizes import entries_size
from kvorum.types import Index, MemberID, Term

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


def leading(*terms: int, **config) -> Driver:
    leader = lone(1, (1, 2), *terms, **config).win().acknowledge(2)
    leader.take()
    return leader


def appends(leader: Driver) -> list[list[int]]:
    """The indexes in each append sent since."""
    return [[e.index for e in m.entries] for m in leader.take(MsgType.APP)]


def peer(leader: Driver, member: int = 2):
    return leader.raft.tracker.progress[MemberID(member)]


# --- sizes and windows


@pytest.mark.parametrize(
    ("limit", "batches"),
    [(0, [[2], [3], [4], [5]]), (2 * 9, [[2, 3], [4, 5]]), (1 << 20, [[2, 3, 4, 5]])],
)
def test_an_append_is_limited_in_size(limit, batches):
    assert entries_size(log_of(1, 1, 1)) == 3 * 9
    leader = lone(1, (1, 2), 1, 1, 1, term=1, max_size_per_msg=limit).win()
    leader.take()
    leader.receive(
        MsgType.APP_RESP, 2, 2, reject=True, index=Index(4), reject_hint=BASE, log_term=Term(1)
    )
    # One probe, and all the rest when that is answered.
    assert appends(leader) == batches[:1]
    leader.receive(MsgType.APP_RESP, 2, 2, index=Index(batches[0][-1]))
    assert [batch for batch in appends(leader) if batch] == batches[1:]


def test_no_more_appends_than_the_window_holds():
    leader = leading(max_inflight_msgs=2)
    for number in range(4):
        leader.propose(b"%d" % number)
    assert appends(leader) == [[3], [4]]
    leader.acknowledge(2, index=3)
    assert appends(leader) == [[5, 6]]
    assert peer(leader).paused()


def test_no_more_bytes_than_the_window_holds():
    leader = leading(max_size_per_msg=10, max_inflight_bytes=25)
    for number in range(4):
        leader.propose(b"%d" % number * 10)
    assert appends(leader) == [[3], [4], [5]]
    assert peer(leader).inflights.bytes == 30
    leader.acknowledge(2, index=3)
    assert appends(leader) == [[6]]


def test_a_full_window_is_probed_with_every_heartbeat():
    leader = leading(max_inflight_msgs=1)
    leader.propose(b"a").propose(b"b")
    assert appends(leader) == [[3]]
    for _ in range(2):
        leader.receive(MsgType.HEARTBEAT_RESP, 2, 1)
        assert appends(leader) == [[]]
    # The answer to the probe: the first append was lost.
    leader.receive(
        MsgType.APP_RESP, 2, 1, reject=True, index=Index(3), reject_hint=Index(2), log_term=Term(1)
    )
    assert appends(leader) == [[3, 4]]


def test_an_unreachable_member_is_probed():
    leader = leading()
    leader.propose(b"a").take()
    leader.node.report_unreachable(MemberID(2))
    assert peer(leader).state is PROBE
    leader.node.report_unreachable(MemberID(2))
    leader.propose(b"b").propose(b"c")
    assert appends(leader) == [[3, 4]]
    leader.acknowledge(2, index=4)
    assert appends(leader) == [[5]]
    assert peer(leader).state is REPLICATE


def test_a_probe_that_is_answered_with_no_news_ends_the_probing():
    leader = leading()
    leader.node.report_unreachable(MemberID(2))
    leader.receive(MsgType.HEARTBEAT_RESP, 2, 1)
    assert appends(leader) == [[]]
    leader.acknowledge(2)
    assert peer(leader).state is REPLICATE


def test_a_late_rejection_is_ignored():
    leader = leading()
    leader.propose(b"a").take()
    leader.receive(
        MsgType.APP_RESP, 2, 1, reject=True, index=Index(2), reject_hint=BASE, log_term=Term(1)
    )
    assert (peer(leader).state, leader.take()) == (REPLICATE, [])


def test_a_rejection_without_a_term_is_taken_as_it_is():
    leader = lone(1, (1, 2), 1, 1, 1, term=1).win()
    leader.take()
    leader.receive(MsgType.APP_RESP, 2, 2, reject=True, index=Index(4), reject_hint=BASE)
    assert appends(leader) == [[2, 3, 4, 5]]


def test_a_commit_index_follows_without_waiting_for_the_heartbeat():
    leader = lone(1, (1, 2, 3)).win().acknowledge(2, 3)
    leader.take()
    leader.propose(b"a").take()
    leader.acknowledge(2)
    assert [(m.to, m.commit) for m in leader.take(MsgType.APP)] == [(2, 3), (3, 3)]
    leader.acknowledge(3)
    assert leader.take() == []


def test_a_heartbeat_carries_no_commit_beyond_what_the_member_has():
    leader = lone(1, (1, 2, 3), 1, 1, term=1).win().acknowledge(2)
    leader.take()
    beats = leader.tick().take(MsgType.HEARTBEAT)
    assert [(m.to, m.commit) for m in beats] == [(2, leader.committed), (3, 0)]


# --- proposals


def test_uncommitted_payload_is_bounded():
    leader = leading(max_uncommitted_size=10)
    leader.propose(b"x" * 99)
    with pytest.raises(ProposalDropped):
        leader.propose(b"y")
    leader.propose(b"")
    leader.settle().acknowledge(2)
    leader.propose(b"x" * 5).propose(b"x" * 5)
    with pytest.raises(ProposalDropped):
        leader.propose(b"y")
    assert leader.raft.uncommitted_size == 10


def test_the_uncommitted_size_never_goes_below_zero():
    leader = lone(1, (1, 2), 1, 1, term=1, max_uncommitted_size=10).win().acknowledge(2)
    assert leader.committed == 4
    assert leader.raft.uncommitted_size == 0


def test_a_dropped_proposal_leaves_its_entries_as_they_were():
    leader = leading(max_uncommitted_size=1).propose(b"xx")
    entry = log_of(7, after=70)[0]
    with pytest.raises(ProposalDropped):
        leader.node.propose([entry])
    assert (entry.term, entry.index) == (7, 71)


def test_a_follower_passes_proposals_on():
    net = network().elect(1)
    net[2].propose(b"a", b"b")
    net.run()
    assert [net[n].data() for n in (1, 2, 3)] == [[b"a", b"b"]] * 3


def test_a_proposal_that_was_passed_on_keeps_its_first_sender():
    follower = lone(2)
    follower.receive(MsgType.HEARTBEAT, 3, 1).take()
    m = Message(MsgType.PROP, MemberID(2), MemberID(1), entries=log_of(0))
    follower.node.step(m)
    [passed_on] = follower.take()
    assert (passed_on.from_, passed_on.to, passed_on.term) == (1, 3, 0)
    assert (m.from_, m.to) == (1, 2)


@pytest.mark.parametrize("role", ["no leader", "candidate", "forwarding disabled"])
def test_proposals_that_nobody_can_take_are_dropped(role):
    member = lone(disable_proposal_forwarding=role == "forwarding disabled")
    if role == "candidate":
        member.node.campaign()
    if role == "forwarding disabled":
        member.receive(MsgType.HEARTBEAT, 2, 1)
    with pytest.raises(ProposalDropped):
        member.propose(b"a")


def test_nothing_is_no_proposal():
    with pytest.raises(InvariantViolation, match="stepped empty MsgProp"):
        leading().node.propose([])


def test_what_rides_along_comes_back_with_the_committed_entry():
    leader = leading()
    marker = object()
    entry = log_of(0)[0]
    entry.local = marker
    leader.node.propose([entry])
    leader.settle().acknowledge(2)
    assert leader.applied[-1] is entry
    assert leader.applied[-1].local is marker


# --- snapshots


class NotYet(MemoryStorage):
    """Has no snapshot ready; or loses its entries between two looks."""

    ready = False
    loses = False

    def snapshot(self) -> Snapshot:
        if not self.ready:
            raise SnapshotTemporarilyUnavailable
        return super().snapshot()

    def entries(self, lo, hi, max_size):
        if self.loses:
            raise LogCompacted
        return super().entries(lo, hi, max_size)


def behind(**config) -> Driver:
    """A leader that has compacted what member 2 needs, and knows that it does."""
    leader = lone(1, (1, 2, 3), 1, 1, 1, term=1, **config).win().acknowledge(3)
    leader.storage.create_snapshot(Index(5), data=b"state")
    leader.storage.compact(Index(5))
    leader.take()
    return leader.receive(MsgType.HEARTBEAT_RESP, 2, 2)


def test_a_member_that_is_too_far_behind_gets_a_snapshot_and_nothing_else():
    leader = behind()
    [m] = leader.take()
    assert (m.type, m.to, m.snapshot.metadata.index) == (MsgType.SNAP, 2, 5)
    assert (peer(leader).state, peer(leader).pending_snapshot) == (SNAPSHOT, 5)
    leader.propose(b"a")
    leader.receive(MsgType.HEARTBEAT_RESP, 2, 2)
    assert [m.to for m in leader.take()] == [3]


@pytest.mark.parametrize(("ok", "next"), [(True, 6), (False, 1)])
def test_a_snapshot_that_was_reported_is_followed_by_a_probe(ok, next):
    leader = behind()
    leader.take()
    leader.node.report_snapshot(MemberID(2), ok)
    pr = peer(leader)
    assert (pr.state, pr.next, pr.paused()) == (PROBE, next, True)
    leader.node.report_snapshot(MemberID(2), ok)
    leader.receive(MsgType.HEARTBEAT_RESP, 2, 2)
    kinds = [m.type for m in leader.take()]
    assert kinds == [MsgType.APP if ok else MsgType.SNAP]


@pytest.mark.parametrize("index", [5, 6])
def test_the_members_own_answer_ends_the_snapshot(index):
    leader = behind().propose(b"a")
    leader.take()
    leader.receive(MsgType.APP_RESP, 2, 2, index=Index(index))
    assert peer(leader).state is REPLICATE
    assert [m.index for m in leader.take(MsgType.APP) if m.to == 2] == [index]


def test_an_answer_from_before_the_log_does_not_end_it():
    leader = behind()
    leader.receive(MsgType.APP_RESP, 2, 2, index=Index(3))
    assert (peer(leader).state, peer(leader).match) == (SNAPSHOT, 3)


def test_a_silent_member_gets_no_snapshot():
    leader = lone(1, (1, 2, 3), 1, 1, 1, term=1).win().acknowledge(3)
    leader.storage.create_snapshot(Index(5))
    leader.storage.compact(Index(5))
    leader.take()
    peer(leader).next = Index(2)
    leader.propose(b"a")
    assert [m.type for m in leader.take() if m.to == 2] == []
    assert peer(leader).state is PROBE


@pytest.mark.parametrize("loses", [True, False], ids=["entry", "term"])
def test_a_snapshot_that_is_not_ready_is_asked_for_again(loses):
    state = ConfState(voters=ids(1, 2))
    storage = NotYet()
    storage.apply_snapshot(Snapshot(b"s", SnapshotMetadata(state, BASE, Term(1))))
    leader = Driver(1, storage).win().acknowledge(2)
    leader.take()
    # Member 2 has lost everything; what it needs is gone, or goes while it is looked for.
    storage.loses = loses
    pr = peer(leader)
    pr.match = Index(0)
    pr.become_probe()
    pr.next = Index(2 if loses else 1)
    leader.receive(MsgType.HEARTBEAT_RESP, 2, 1)
    assert leader.take() == []
    storage.ready = True
    leader.receive(MsgType.HEARTBEAT_RESP, 2, 1)
    assert [m.type for m in leader.take()] == [MsgType.SNAP]


def test_a_compacted_log_without_a_snapshot_is_a_bug():
    leader = lone(1, (1, 2), 1, 1, term=1).win()
    leader.storage._snapshot = Snapshot()
    peer(leader).next = Index(1)
    peer(leader).recent_active = True
    with pytest.raises(InvariantViolation, match="need non-empty snapshot"):
        leader.receive(MsgType.HEARTBEAT_RESP, 2, leader.term)


def test_a_follower_takes_a_snapshot_and_goes_on_from_it():
    follower = lone(2, (1, 2))
    source = storage_with(ConfState(voters=ids(1, 2, 3)), 1, 1)
    snapshot = source.create_snapshot(Index(3), data=b"state")
    follower.receive(MsgType.SNAP, 1, 1, snapshot=snapshot)
    assert not follower.raft.promotable()
    [answer] = follower.take()
    assert (answer.type, answer.index) == (MsgType.APP_RESP, 3)
    assert follower.storage.snapshot() == snapshot
    assert follower.raft.tracker.config.voters == {1, 2, 3}
    assert follower.node.basic_status().applied == 3
    assert follower.raft.promotable()


@pytest.mark.parametrize(
    ("snapshot", "index"),
    [
        (None, 2),
        (Snapshot(metadata=SnapshotMetadata(ConfState(voters=ids(1, 2)), Index(2), Term(1))), 2),
        (Snapshot(metadata=SnapshotMetadata(ConfState(voters=ids(1, 3)), Index(9), Term(1))), 2),
    ],
    ids=["empty", "old", "not for us"],
)
def test_a_snapshot_of_no_use_is_answered_with_the_commit_index(snapshot, index):
    follower = lone(2, (1, 2), 1, term=1, commit=2)
    follower.receive(MsgType.SNAP, 1, 1, snapshot=snapshot)
    [answer] = follower.take()
    assert (answer.type, answer.index) == (MsgType.APP_RESP, index)


@pytest.mark.parametrize(
    "state",
    [
        ConfState(voters=ids(1), learners=ids(2)),
        ConfState(voters=ids(1), voters_outgoing=ids(1, 2), learners_next=ids(2)),
    ],
)
def test_a_learner_or_leaving_voter_takes_a_snapshot(state):
    follower = lone(2, (1, 2))
    meta = SnapshotMetadata(state, Index(9), Term(1))
    follower.receive(MsgType.SNAP, 1, 1, snapshot=Snapshot(b"s", meta))
    assert follower.settle().last == 9


def test_a_leader_never_takes_a_snapshot():
    leader = leading()
    meta = SnapshotMetadata(ConfState(voters=ids(1, 2)), Index(9), Term(1))
    following.on_snapshot(leader.raft, Message(MsgType.SNAP, snapshot=Snapshot(b"s", meta)))
    assert (leader.state, leader.last) == (StateType.FOLLOWER, 2)


def test_a_malformed_append_is_ignored():
    follower = lone(2, (1, 2))
    entries = [*log_of(1), *log_of(1, after=5)]
    follower.receive(MsgType.APP, 1, 1, log_term=Term(1), index=BASE, entries=entries)
    assert (follower.take(), follower.last) == ([], BASE)


def test_an_append_before_the_commit_index_is_answered_with_it():
    follower = lone(2, (1, 2), 1, 1, term=1, commit=3)
    follower.receive(MsgType.APP, 1, 1, log_term=Term(1), index=BASE, entries=log_of(1))
    assert [m.index for m in follower.take()] == [3]


def test_strangers_are_ignored():
    leader = leading()
    with pytest.raises(RaftError, match="peer not found"):
        leader.receive(MsgType.APP_RESP, 9, 1, index=Index(2))
    leader.receive(MsgType.TRANSFER_LEADER, 9)
    leader.receive(MsgType.APP, 2, 1)
    assert leader.take() == []
