"""The v2 requests in a log that etcd 3.5 wrote."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvorum.membership import Cluster, Member
from kvorum.pb import etcdserverpb as pb
from kvorum.pb.wire import delimited, int64_field, tag, varint
from kvorum.server.request import TAGS, encode_request
from kvorum.server.v2request import apply_v2_request, is_v2_request
from kvorum.types import MemberID


class Buckets:
    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def get(self, bucket: str, key: bytes) -> bytes | None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> list[tuple[bytes, bytes]]:
        return []


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster(7, MemberID(0xAB), Buckets())
    cluster.add(Member(MemberID(0xAB), ("http://127.0.0.1:1",)))
    return cluster


def v2(path: str, value: str, method: str = "PUT", request_id: int = 0x1234) -> bytes:
    """As etcd writes it: all seventeen fields, most of them empty."""
    out = tag(1, 0) + varint(request_id)
    for number, text in ((2, method), (3, path), (4, value)):
        out += delimited(number, text.encode())
    out += b"\x28\x00" + delimited(6, b"") + b"\x38\x00" + b"\x48\x00\x50\x00\x58\x00"
    return out + b"".join(tag(number, 0) + b"\0" for number in (12, 13, 14, 15, 16))


def test_the_cluster_version(cluster: Cluster) -> None:
    data = v2("/0/version", "3.5.0")
    assert is_v2_request(data)
    apply_v2_request(data, cluster)
    assert cluster.version == "3.5.0"


def test_attributes_of_a_member(cluster: Cluster) -> None:
    value = json.dumps({"name": "é1", "clientURLs": ["http://a:1", "http://b:2"]})
    apply_v2_request(v2("/0/members/ab/attributes", value), cluster)
    member = cluster.members[MemberID(0xAB)]
    assert (member.name, member.client_urls) == ("é1", ("http://a:1", "http://b:2"))
    assert member.peer_urls == ("http://127.0.0.1:1",)


def test_attributes_that_are_not_there(cluster: Cluster) -> None:
    apply_v2_request(v2("/0/members/ab/attributes", '{"clientURLs":null}'), cluster)
    member = cluster.members[MemberID(0xAB)]
    assert (member.name, member.client_urls) == ("", ())


def test_attributes_of_one_that_was_removed_meanwhile(cluster: Cluster) -> None:
    cluster.remove(MemberID(0xAB))
    apply_v2_request(v2("/0/members/ab/attributes", '{"name":"late"}'), cluster)
    assert cluster.members == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/0/version"),
        ("PUT", "/0/versions"),
        ("PUT", "/1/key"),
        ("GET", "/0/members/ab/attributes"),
        ("PUT", "/0/members/ab/raftAttributes"),
        ("PUT", "/0/members/AB/attributes"),
        ("PUT", "/0/members//attributes"),
        ("PUT", "/0/members/11112222333344445/attributes"),
        ("SYNC", ""),
    ],
)
def test_what_v2_could_do_besides(cluster: Cluster, method: str, path: str) -> None:
    with pytest.raises(ValueError, match="cannot be applied"):
        apply_v2_request(v2(path, "{}", method), cluster)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x08\x01\x12\x05PUT", "ends within field 2"),
        (b"\x08\x01\x12", "broken varint"),
        (b"\x08\x01\x12" + b"\xff" * 11, "broken varint"),
        (b"\x08\x01\x12\x00\x1d\x00\x00\x00\x00", "wire type 5"),
        (b"\x08", "broken varint"),
    ],
)
def test_damage(cluster: Cluster, data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        apply_v2_request(data, cluster)


def test_a_value_that_is_no_json(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        apply_v2_request(v2("/0/members/ab/attributes", "no json"), cluster)


@given(st.sampled_from(sorted(TAGS)), st.integers(1, 2**64 - 1))
def test_no_request_of_v3_is_taken_for_one(kind: str, request_id: int) -> None:
    assert not is_v2_request(encode_request(kind, b"\x12\x00", varint(request_id)))
    old = pb.InternalRaftRequest(ID=request_id, **{kind: {}})
    assert not is_v2_request(old.SerializeToString())


@given(st.integers(0, 2**64 - 1))
@example(0)
def test_every_request_of_v2_is(request_id: int) -> None:
    assert is_v2_request(v2("/0/version", "x", request_id=request_id))


def test_an_id_alone_is_none() -> None:
    assert not is_v2_request(b"\x08\x01")
    assert not is_v2_request(b"")
    assert not is_v2_request(int64_field(1, 5) + delimited(3, b"x"))
