"""Conf changes: what is validated, what goes to raft, what the member list becomes."""

from __future__ import annotations

import json

import pytest

from kvorum.membership import Cluster, Member
from kvorum.raft.codec import encode_conf_change
from kvorum.raft.types import ConfChange, ConfChangeType, ConfState, Entry
from kvorum.server.confchange import apply_conf_change
from kvorum.types import Index, MemberID, Term

ONE = Member(MemberID(1), ("http://127.0.0.1:1",), "one")


class Buckets:
    def __init__(self) -> None:
        self.writes: list[tuple[str, bytes, bytes]] = []

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        self.writes.append((bucket, key, value))

    def delete(self, bucket: str, key: bytes) -> None: ...
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

    def apply(
        self,
        member: Member,
        kind: ConfChangeType = ConfChangeType.ADD_NODE,
        *,
        node: int | None = None,
        context: bytes | None = None,
    ) -> ConfState:
        node_id = member.id if node is None else MemberID(node)
        data = member.to_json() if context is None else context
        change = ConfChange(kind, node_id, data, 77)
        entry = Entry(Term(2), Index(5), *encode_conf_change(change))
        return apply_conf_change(entry, self.cluster, self.change_conf)


def test_a_member_is_added_here_and_in_raft() -> None:
    bench = Bench()
    assert bench.apply(ONE) == ConfState((MemberID(1),))
    assert bench.cluster.members == {1: ONE}
    assert bench.buckets.writes == [("members", b"1", ONE.to_json())]
    assert (bench.given[0].node_id, bench.given[0].id) == (1, 77)


def test_a_learner_is_added_as_one() -> None:
    bench = Bench()
    learner = Member(MemberID(2), ("http://b:1",), is_learner=True)
    bench.apply(ONE)
    bench.apply(learner, ConfChangeType.ADD_LEARNER_NODE)
    assert bench.cluster.learners() == [2]
    assert bench.given[1].type is ConfChangeType.ADD_LEARNER_NODE


@pytest.mark.parametrize(
    "second",
    [
        Member(MemberID(1), ("http://b:1",)),
        Member(MemberID(9), ("http://b:1",)),
        Member(MemberID(2), ("http://b:1", *ONE.peer_urls)),
    ],
    ids=["id is there", "id was removed", "peer URL is taken"],
)
def test_a_refused_change_counts_and_changes_nothing(second: Member) -> None:
    """Raft hears of it all the same, as a change of nobody, so that all members agree."""
    bench = Bench()
    bench.apply(ONE)
    bench.cluster.add(Member(MemberID(9), ("http://i:1",)))
    bench.cluster.remove(MemberID(9))
    bench.buckets.writes.clear()
    assert bench.apply(second) == ConfState((MemberID(1),))
    assert bench.given[1] == ConfChange(ConfChangeType.ADD_NODE, MemberID(0), b"", 77)
    assert bench.cluster.members == {1: ONE}
    assert bench.buckets.writes == []


def test_raft_comes_first() -> None:
    """If it cannot take a change that was validated, the list stays as it was."""
    bench = Bench()
    bench.refuses = True
    with pytest.raises(RuntimeError, match="raft refuses"):
        bench.apply(ONE)
    assert bench.cluster.members == {}


@pytest.mark.parametrize("kind", [ConfChangeType.REMOVE_NODE, ConfChangeType.UPDATE_NODE])
def test_changes_of_a_later_version_end_the_member(kind: ConfChangeType) -> None:
    with pytest.raises(NotImplementedError, match="configuration change"):
        Bench().apply(ONE, kind)


def test_a_promotion_ends_the_member() -> None:
    fields = json.loads(ONE.to_json()) | {"isPromote": True}
    with pytest.raises(NotImplementedError, match="promotion"):
        Bench().apply(ONE, context=json.dumps(fields).encode())


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
