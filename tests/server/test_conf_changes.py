"""Conf changes: what is validated, what goes to raft, what the member list becomes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kvorum import errors
from kvorum.membership import Cluster, Member, changes
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.types import ConfChange, ConfChangeType, ConfState, Entry
from kvorum.server.confchange import NO_CHANGE, Applied, Change, apply_conf_change
from kvorum.types import Index, MemberID, Term

ONE = Member(MemberID(1), ("http://127.0.0.1:1",), "one")
LEARNER = Member(MemberID(2), ("http://b:1",), is_learner=True)


class Buckets:
    def __init__(self) -> None:
        self.writes: list[tuple[str, bytes, bytes]] = []
        self.deletes: list[tuple[str, bytes]] = []

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        self.writes.append((bucket, key, value))

    def delete(self, bucket: str, key: bytes) -> None:
        self.deletes.append((bucket, key))

    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> list[tuple[bytes, bytes]]:
        return []


class Bench:
    """A cluster, and raft as a list of the changes that it was given."""

    def __init__(self) -> None:
        self.buckets = Buckets()
        self.cluster = Cluster(7, MemberID(1), self.buckets)
        self.given: list[ConfChange] = []
        self.refuses = False

    def change_conf(self, change: ConfChange) -> ConfState:
        if self.refuses:
            raise RuntimeError("raft refuses")
        self.given.append(change)
        return ConfState(tuple(change.node_id for change in self.given if change.node_id))

    def apply_change(self, change: ConfChange) -> Applied:
        change = replace(change, id=77)
        entry = Entry(Term(2), Index(5), *encode_conf_change(change))
        return apply_conf_change(entry, self.cluster, self.change_conf)

    def apply(
        self,
        member: Member,
        kind: ConfChangeType = ConfChangeType.ADD_NODE,
        *,
        node: int | None = None,
        context: bytes | None = None,
    ) -> Applied:
        node_id = member.id if node is None else MemberID(node)
        data = member.to_json() if context is None else context
        return self.apply_change(ConfChange(kind, node_id, data))


def test_a_member_is_added_here_and_in_raft() -> None:
    bench = Bench()
    added = Change("add", ONE.id, ONE.peer_urls)
    assert bench.apply(ONE) == Applied(77, ConfState((MemberID(1),)), added)
    assert bench.cluster.members == {1: ONE}
    assert bench.buckets.writes == [("members", b"1", ONE.to_json())]
    assert (bench.given[0].node_id, bench.given[0].id) == (1, 77)


def test_a_learner_is_added_as_one() -> None:
    bench = Bench()
    bench.apply(ONE)
    bench.apply(LEARNER, ConfChangeType.ADD_LEARNER_NODE)
    assert bench.cluster.learners() == [2]
    assert bench.given[1].type is ConfChangeType.ADD_LEARNER_NODE


def test_raft_comes_first() -> None:
    """If it cannot take a change that was validated, the list stays as it was."""
    bench = Bench()
    bench.refuses = True
    with pytest.raises(RuntimeError, match="raft refuses"):
        bench.apply(ONE)
    assert bench.cluster.members == {}


def test_a_learner_is_promoted_and_keeps_what_it_published() -> None:
    bench = Bench()
    bench.apply(ONE)
    bench.apply(LEARNER, ConfChangeType.ADD_LEARNER_NODE)
    bench.cluster.set_attributes(LEARNER.id, "two", ["http://c:1"])
    bench.buckets.writes.clear()
    change = changes.promoting(LEARNER.id)
    assert change.context == b'{"id":2,"peerURLs":null,"isPromote":true}'
    applied = bench.apply_change(change)
    assert applied.change == Change("promote", LEARNER.id)
    promoted = Member(LEARNER.id, LEARNER.peer_urls, "two", ("http://c:1",))
    assert bench.cluster.members[LEARNER.id] == promoted
    assert bench.buckets.writes == [("members", b"2", promoted.to_json())]
    assert bench.given[-1].type is ConfChangeType.ADD_NODE


def test_an_update_changes_the_peer_urls_alone() -> None:
    bench = Bench()
    bench.apply(ONE)
    bench.cluster.set_attributes(ONE.id, "one", ["http://c:1"])
    urls = ("http://e:1", "http://f:1")
    applied = bench.apply_change(changes.updating(Member(ONE.id, urls)))
    assert applied.change == Change("update", ONE.id, urls)
    assert bench.cluster.members[ONE.id] == Member(ONE.id, urls, "one", ("http://c:1",))


def test_a_member_may_be_updated_to_urls_of_its_own() -> None:
    bench = Bench()
    bench.apply(ONE)
    assert bench.apply_change(changes.updating(ONE)).refusal is None


def test_a_removed_member_is_remembered() -> None:
    bench = Bench()
    bench.apply(ONE)
    bench.apply(LEARNER, ConfChangeType.ADD_LEARNER_NODE)
    bench.buckets.writes.clear()
    applied = bench.apply_change(changes.removing(LEARNER.id))
    assert applied.change == Change("remove", LEARNER.id)
    assert (bench.cluster.members, bench.cluster.removed) == ({1: ONE}, {2})
    assert bench.buckets.deletes == [("members", b"2")]
    assert bench.buckets.writes == [("members_removed", b"2", b"removed")]


REFUSALS = [
    (changes.adding(ONE), errors.MemberExist),
    (changes.adding(Member(MemberID(9), ("http://z:1",))), errors.MemberNotFound),
    (changes.adding(Member(MemberID(3), ("http://z:1", *ONE.peer_urls))), errors.PeerURLExist),
    (
        changes.adding(Member(MemberID(3), ("http://z:1",), is_learner=True)),
        errors.TooManyLearners,
    ),
    (changes.promoting(MemberID(3)), errors.MemberNotFound),
    (changes.promoting(MemberID(9)), errors.MemberNotFound),
    (changes.promoting(ONE.id), errors.MemberNotLearner),
    (changes.removing(MemberID(3)), errors.MemberNotFound),
    (changes.removing(MemberID(9)), errors.MemberNotFound),
    (changes.updating(Member(MemberID(3), ("http://z:1",))), errors.MemberNotFound),
    (changes.updating(Member(MemberID(9), ("http://z:1",))), errors.MemberNotFound),
    (changes.updating(Member(MemberID(2), ONE.peer_urls)), errors.PeerURLExist),
]


@pytest.mark.parametrize(("change", "refusal"), REFUSALS)
def test_a_refused_change_counts_and_changes_nothing(
    change: ConfChange, refusal: type[errors.EtcdError]
) -> None:
    """Raft hears of it all the same, as a change of nobody, so that all members agree."""
    bench = Bench()
    bench.apply(ONE)
    bench.apply(LEARNER, ConfChangeType.ADD_LEARNER_NODE)
    bench.cluster.add(Member(MemberID(9), ("http://i:1",)))
    bench.cluster.remove(MemberID(9))
    before = dict(bench.cluster.members)
    bench.buckets.writes.clear()
    bench.buckets.deletes.clear()
    applied = bench.apply_change(change)
    assert isinstance(applied.refusal, refusal)
    assert applied.change is NO_CHANGE
    assert bench.given[-1] == ConfChange(change.type, MemberID(0), b"", 77)
    assert bench.cluster.members == before
    assert (bench.buckets.writes, bench.buckets.deletes) == ([], [])


def test_more_learners_where_they_are_allowed() -> None:
    bench = Bench()
    bench.cluster.max_learners = 2
    for number in (2, 3, 4):
        member = Member(MemberID(number), (f"http://l{number}:1",), is_learner=True)
        bench.apply(member, ConfChangeType.ADD_LEARNER_NODE)
    assert bench.cluster.learners() == [2, 3]


def test_the_context_etcd_writes_is_read() -> None:
    """It carries ``isPromote`` with every member that is added to a running cluster."""
    bench = Bench()
    fields = json.loads(ONE.to_json()) | {"isPromote": False}
    bench.apply(ONE, context=json.dumps(fields).encode())
    assert bench.cluster.members == {1: ONE}


def test_the_ids_must_agree() -> None:
    with pytest.raises(AssertionError):
        Bench().apply(ONE, node=2)


@pytest.mark.parametrize(
    ("context", "why"),
    [
        (b"", "Expecting value"),
        (b"[]", "not a member record"),
        (b"{}", "not a member record"),
        (b"\xff", "can't decode"),
    ],
)
def test_a_context_that_is_no_member(context: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Bench().apply(ONE, context=context)
