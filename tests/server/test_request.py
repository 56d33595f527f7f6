from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kvorum.pb import etcdserverpb as pb
from kvorum.pb import membershippb
from kvorum.pb.wire import delimited, int64_field, varint, varint64
from kvorum.server.header import HeaderWriter, revision_only
from kvorum.server.request import (
    TAGS,
    RequestIds,
    decode_id,
    decode_plain,
    decode_request,
    encode_request,
)
from kvorum.types import MemberID, Revision, Term


def test_a_put_has_etcds_bytes() -> None:
    """The sample of a real log: put a=b, up to the id."""
    ids = RequestIds(MemberID(0xDD596C51BAE75259), 1_700_000_000_000)
    put = pb.PutRequest(key=b"a", value=b"b").SerializeToString()
    data = encode_request("put", put, ids.take()[1])
    assert data[:12].hex() == "22060a0161120162a2060a08"
    assert len(data) == 12 + 9


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**41), st.integers(1, 70_000))
def test_ids_count_up_within_the_members_share(member: int, ms: int, calls: int) -> None:
    ids = RequestIds(MemberID(member), ms)
    last = 0
    for _ in range(min(calls, 3)):
        last, encoded = ids.take()
        assert last >> 48 == member & 0xFFFF
        parsed = pb.RequestHeader.FromString(b"\x08" + encoded)
        assert last == parsed.ID
    assert last & ((1 << 48) - 1) == ((ms & ((1 << 40) - 1)) << 8) + min(calls, 3)


def test_the_cached_part_of_an_id_follows_the_count() -> None:
    ids = RequestIds(MemberID(0x8001), 0)
    for _ in range(20_000):  # past one change of the upper bits
        number, encoded = ids.take()
        assert encoded == varint(number)
        assert ids.next() == number + 1


def test_user_and_auth_revision_go_into_the_header() -> None:
    data = encode_request("put", b"", varint(9), "root", 3)
    parsed = pb.InternalRaftRequest.FromString(data)
    assert (parsed.header.ID, parsed.header.username, parsed.header.auth_revision) == (9, "root", 3)


@pytest.mark.parametrize("kind", sorted(TAGS))
def test_every_kind_comes_back(kind: str) -> None:
    """An empty request is a present field without bytes, and must be told from none."""
    decoded = decode_request(encode_request(kind, b"", varint(77)))
    assert decoded[:2] == (77, kind)


def test_a_cluster_version_has_etcds_bytes() -> None:
    """From a log of etcd 3.7: header first there, last here; the fields are the same."""
    request = membershippb.ClusterVersionSetRequest(ver="3.7.0")
    data = encode_request("cluster_version_set", request.SerializeToString(), varint(1))
    assert data.hex() == "a251070a05332e372e30" + "a206020801"


def test_an_old_id_is_taken_too() -> None:
    request = pb.InternalRaftRequest(ID=5, put=pb.PutRequest(key=b"k"))
    request.header.SetInParent()
    decoded = decode_request(request.SerializeToString())
    assert decoded[0] == 5


PUTS = st.builds(
    lambda key, size, lease: pb.PutRequest(key=key, value=b"v" * size, lease=lease),
    st.binary(max_size=300),
    st.integers(0, 20_000) | st.integers(2_000_000, 2_200_000),
    st.integers(-(2**63), 2**63 - 1),
)


@given(
    st.sampled_from(sorted(TAGS)),
    PUTS,
    st.integers(0, 2**64 - 1),
    st.sampled_from(["", "u", "root"]),
)
def test_the_quick_way_reads_what_the_slow_one_reads(
    kind: str, put: pb.PutRequest, number: int, user: str
) -> None:
    message = put.SerializeToString() if kind == "put" else b""
    data = encode_request(kind, message, varint(number), user, 3 if user else 0)
    quick = decode_plain(data)
    if len(TAGS[kind]) > 1 or user:
        assert quick is None
        return
    assert quick is not None
    assert (decode_id(data, quick[2]), *quick[:2]) == decode_request(data)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x22" + rest))
def test_the_quick_way_never_reads_more_than_the_slow_one(data: bytes) -> None:
    try:
        quick = decode_plain(data)
    except DecodeError:
        quick = None
    if quick is not None:
        assert (decode_id(data, quick[2]), *quick[:2]) == decode_request(data)


def test_a_header_that_goes_on_is_not_for_the_quick_way() -> None:
    """Its id is so short that what follows could pass for the rest of it."""
    data = encode_request("put", b"", varint(5), "u")
    assert len(data) < 15
    assert decode_plain(data) is None
    assert decode_plain(encode_request("put", b"", varint(5))) == ("put", pb.PutRequest(), 6)
    assert decode_plain(b"\x22" + b"\xff" * 40) is None


def test_what_is_no_request() -> None:
    with pytest.raises(ValueError, match="0 requests"):
        decode_request(delimited(100, b"\x08\x01"))
    two = pb.InternalRaftRequest(put=pb.PutRequest(), txn=pb.TxnRequest())
    two.header.ID = 1
    with pytest.raises(ValueError, match="2 requests"):
        decode_request(two.SerializeToString())
    with pytest.raises(DecodeError):
        decode_request(b"\xff")


@given(st.integers(-(2**63), 2**63 - 1))
def test_hand_made_int64_fields(value: int) -> None:
    assert int64_field(1, value) == pb.LeaseRevokeRequest(ID=value).SerializeToString()
    assert varint64(value) == varint(value & (2**64 - 1))


def test_headers_are_what_protobuf_would_write() -> None:
    writer = HeaderWriter(2**63 + 5, MemberID(2**64 - 1))
    for term, revision in [(0, 1), (2, 1), (2, 300), (2, 300), (3, 300), (3, 2**40)]:
        writer.set_term(Term(term))
        header = pb.ResponseHeader(
            cluster_id=2**63 + 5, member_id=2**64 - 1, revision=revision, raft_term=term
        )
        parsed = pb.PutResponse.FromString(writer.field(Revision(revision)))
        assert parsed.header == header
    inner = pb.PutResponse.FromString(revision_only(Revision(9)))
    assert inner.header == pb.ResponseHeader(revision=9)


_IDS = st.integers(0, 2**64 - 1)
_PUTS = st.builds(
    pb.PutRequest,
    key=st.binary(max_size=300),
    value=st.binary(max_size=300),
    lease=st.integers(-(2**63), 2**63 - 1),
    prev_kv=st.booleans(),
)


@given(_PUTS, st.builds(pb.RequestHeader, ID=_IDS, username=st.text(max_size=3)), _IDS)
def test_a_put_is_decoded_as_protobuf_would(
    put: pb.PutRequest, header: pb.RequestHeader, request_id: int
) -> None:
    whole = pb.InternalRaftRequest(put=put, header=header, ID=request_id)
    expected = (header.ID or request_id, "put", put)
    assert decode_request(whole.SerializeToString()) == expected
    whole.ClearField("ID")
    assert decode_request(whole.SerializeToString()) == (header.ID, "put", put)


@given(_PUTS, _IDS.filter(bool), st.data())
def test_a_damaged_put_is_taken_as_protobuf_would(
    put: pb.PutRequest, request_id: int, data: st.DataObject
) -> None:
    whole = pb.InternalRaftRequest(put=put, header=pb.RequestHeader(ID=request_id))
    encoded = bytearray(whole.SerializeToString())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    del encoded[data.draw(st.integers(len(encoded) // 2, len(encoded))) :]
    assert _decoded(decode_request, bytes(encoded)) == _decoded(_by_protobuf, bytes(encoded))


def _by_protobuf(data: bytes) -> object:
    request = pb.InternalRaftRequest.FromString(data)
    kinds = [f.name for f, _ in request.ListFields() if f.name in TAGS]
    if len(kinds) != 1:
        raise ValueError(kinds)
    return request.header.ID or request.ID, kinds[0], getattr(request, kinds[0])


def _decoded(decode: Callable[[bytes], object], data: bytes) -> object:
    try:
        return decode(data)
    except (ValueError, DecodeError) as error:
        return type(error)
