from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvorum import errors
from kvorum.membership import Cluster, FutureVersion, Member
from kvorum.types import MemberID


class Buckets:
    """The backend as a dict of dicts."""

    def __init__(self) -> None:
        self.data: dict[str, dict[bytes, bytes]] = {}

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        self.data.setdefault(bucket, {})[key] = value

    def delete(self, bucket: str, key: bytes) -> None:
        self.data.get(bucket, {}).pop(key, None)

    def get(self, bucket: str, key: bytes) -> bytes | None:
        return self.data.get(bucket, {}).get(key)

    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        items = sorted(self.data.get(bucket, {}).items())
        return iter([(k, v) for k, v in items if k >= lo and (hi is None or k < hi)])


def member(number: int, **fields: object) -> Member:
    return Member(MemberID(number), (f"http://127.0.0.1:{number}",), **fields)  # type: ignore[arg-type]


@pytest.fixture
def buckets() -> Buckets:
    return Buckets()


@pytest.fixture
def cluster(buckets: Buckets) -> Cluster:
    return Cluster(7, MemberID(1), buckets)


def test_records_are_etcds_json(cluster: Cluster, buckets: Buckets) -> None:
    cluster.add(member(0xAB))
    assert buckets.data["members"] == {b"ab": b'{"id":171,"peerURLs":["http://127.0.0.1:171"]}'}
    cluster.set_attributes(MemberID(0xAB), "a<b>&\u2028", ["http://c"])
    assert buckets.data["members"][b"ab"] == (
        b'{"id":171,"peerURLs":["http://127.0.0.1:171"],'
        rb'"name":"a\u003cb\u003e\u0026\u2028","clientURLs":["http://c"]}'
    )


def test_a_restored_list_is_the_same(cluster: Cluster, buckets: Buckets) -> None:
    cluster.add(member(1, name="one"))
    cluster.add(member(2, is_learner=True))
    cluster.add(member(3))
    cluster.remove(MemberID(3))
    cluster.set_version("3.7.0")
    cluster.set_downgrade(True, "3.6.0")
    again = Cluster(7, MemberID(1), buckets)
    again.restore()
    assert again.members == cluster.members
    assert (again.removed, again.version, again.downgrade_target) == ({3}, "3.7.0", "3.6.0")
    assert (again.voters(), again.learners()) == ([1], [2])
    assert not again.is_learner()


def test_a_cancelled_downgrade_leaves_no_target(cluster: Cluster, buckets: Buckets) -> None:
    cluster.set_downgrade(True, "3.6.0")
    cluster.set_downgrade(False, "3.6.0")
    assert buckets.data["cluster"][b"downgrade"] == b'{"target-version":"","enabled":false}'
    again = Cluster(7, MemberID(1), buckets)
    again.restore()
    assert again.downgrade_target == ""


@pytest.mark.parametrize(
    ("candidate", "refusal"),
    [
        (member(1), errors.MemberExist),
        (member(9), errors.MemberNotFound),
        (Member(MemberID(5), ("http://127.0.0.1:1",)), errors.PeerURLExist),
    ],
)
def test_what_may_not_be_added(
    cluster: Cluster, candidate: Member, refusal: type[errors.EtcdError]
) -> None:
    cluster.add(member(1))
    cluster.add(member(9))
    cluster.remove(MemberID(9))
    with pytest.raises(refusal):
        cluster.check_add(candidate)


def test_attributes_of_a_removed_member_are_passed_over(cluster: Cluster) -> None:
    cluster.add(member(1))
    cluster.remove(MemberID(1))
    cluster.set_attributes(MemberID(1), "late", [])
    assert cluster.members == {}
    with pytest.raises(AssertionError):
        cluster.set_attributes(MemberID(2), "never added", [])


def test_learner_is_told(buckets: Buckets) -> None:
    cluster = Cluster(7, MemberID(2), buckets)
    assert not cluster.is_learner()
    cluster.add(member(2, is_learner=True))
    assert cluster.is_learner()


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"id":"x"}'])
def test_a_broken_record_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a member record"):
        Member.from_json(data)


def test_null_peer_urls_are_none() -> None:
    assert Member.from_json(b'{"id":1,"peerURLs":null,"isPromote":true}').peer_urls == ()


def test_what_is_restored_replaces_what_was_known(cluster: Cluster, buckets: Buckets) -> None:
    """As it does when the leader has sent its database."""
    cluster.add(member(1))
    cluster.add(member(2))
    cluster.remove(MemberID(2))
    cluster.set_version("3.7.0")
    cluster.set_downgrade(True, "3.6.0")
    other = Buckets()
    other.put("members", b"3", member(3).to_json())
    cluster._backend = other
    cluster.restore()
    assert (set(cluster.members), cluster.removed) == ({3}, set())
    assert (cluster.version, cluster.downgrade_target) == ("", "")


@pytest.mark.parametrize("version", ["3.8.0", "4.0.0", "3.7", "", "not_decided"])
def test_a_version_that_this_member_does_not_know(
    cluster: Cluster, buckets: Buckets, version: str
) -> None:
    with pytest.raises(FutureVersion, match="cannot be part of it"):
        cluster.set_version(version)
    assert cluster.version == ""
    if version:
        buckets.put("cluster", b"clusterVersion", version.encode())
        with pytest.raises(FutureVersion):
            cluster.restore()


def test_the_others(cluster: Cluster) -> None:
    for number in (3, 1, 2):
        cluster.add(member(number))
    assert [m.id for m in cluster.others()] == [2, 3]
