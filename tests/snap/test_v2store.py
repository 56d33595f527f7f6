"""The v2 store: the form that etcd reads, and what comes back from it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.snap import BadStore, Membership, StoredMember, build_store, read_store

MEMBERS = Membership(
    members=(
        StoredMember(0xDD0B5F7DDB13B49, ("http://a:2380",), name="one", client_urls=("http://a",)),
        StoredMember(0xFCE4CCDB9802DA4A, ("http://b:2380", "http://b:1"), is_learner=True),
    ),
    removed=(0x1C34485C6D2C5344,),
    version="3.5.0",
)


def test_the_tree() -> None:
    store = json.loads(build_store(MEMBERS))
    assert list(store) == ["Root", "WatcherHub", "CurrentIndex", "Stats", "CurrentVersion"]
    assert store["CurrentVersion"] == 2
    root = store["Root"]
    fields = ["Path", "CreatedIndex", "ModifiedIndex", "ExpireTime", "Value", "Children"]
    assert list(root) == fields
    assert root["ExpireTime"] == "0001-01-01T00:00:00Z"
    assert list(root["Children"]) == ["0", "1"]
    assert root["Children"]["1"]["Children"] == {}
    zero = root["Children"]["0"]["Children"]
    assert list(zero["removed_members"]["Children"]) == ["1c34485c6d2c5344"]
    assert zero["version"]["Value"] == "3.5.0"
    one, two = zero["members"]["Children"].values()
    assert one["Path"] == "/0/members/dd0b5f7ddb13b49"
    assert {name: node["Value"] for name, node in one["Children"].items()} == {
        "raftAttributes": '{"peerURLs":["http://a:2380"]}',
        "attributes": '{"name":"one","clientURLs":["http://a"]}',
    }
    assert one["Children"]["attributes"]["Children"] is None
    assert {name: node["Value"] for name, node in two["Children"].items()} == {
        "raftAttributes": '{"peerURLs":["http://b:2380","http://b:1"],"isLearner":true}'
    }


def test_the_rest_of_the_store() -> None:
    store = json.loads(build_store(MEMBERS))
    history = store["WatcherHub"]["EventHistory"]
    assert history["Queue"]["Events"] == [None] * 1000
    assert history["Queue"]["Capacity"] == 1000
    assert len(store["Stats"]) == 16
    assert list(store["Stats"])[:4] == ["getsSuccess", "getsFail", "setsSuccess", "setsFail"]
    assert store["CurrentIndex"] == 5


def test_what_go_escapes_is_escaped() -> None:
    member = StoredMember(1, ("http://h/?a=1&b=<2>",), name="zoë", client_urls=("x",))
    text = build_store(Membership((member,))).decode()
    assert r"a=1\\u0026b=\\u003c2\\u003e" in text
    assert "&" not in text
    assert "zoë" in text
    assert read_store(text.encode()).members == (member,)


urls = st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=3).map(tuple)
ids = st.integers(0, (1 << 64) - 1)


@st.composite
def members(draw: st.DrawFn) -> StoredMember:
    client = draw(urls)
    name = draw(st.text(st.characters(codec="utf-8"), max_size=10)) if client else ""
    return StoredMember(draw(ids), draw(urls), draw(st.booleans()), name, client)


@settings(deadline=None)
@given(
    st.lists(members(), max_size=5, unique_by=lambda member: member.id),
    st.lists(ids, max_size=4, unique=True),
    st.none() | st.just("3.7.0"),
)
def test_what_is_built_is_read_back(
    some: list[StoredMember], removed: list[int], version: str | None
) -> None:
    ordered = tuple(sorted(some, key=lambda member: member.id))
    membership = Membership(ordered, tuple(sorted(removed)), version)
    assert read_store(build_store(membership)) == membership


def test_keys_of_v2_users_are_noticed() -> None:
    store = json.loads(build_store(MEMBERS))
    store["Root"]["Children"]["1"]["Children"]["x"] = {"Value": "y", "Children": None}
    assert read_store(json.dumps(store).encode()).has_user_data
    assert not read_store(build_store(MEMBERS)).has_user_data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"Root":7}',
        b'{"Root":{"Children":[]}}',
        b'{"Root":{"Children":{"0":{"Children":{"version":{"Value":7}}}}}}',
        b'{"Root":{"Children":{"0":{"Children":{"members":{"Children":{"xyz":{}}}}}}}}',
        b'{"Root":{"Children":{"0":{"Children":{"members":{"Children":{"1":{"Children":{}}}}}}}}}',
        b"[" * 100_000,
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(BadStore, match="the v2 store cannot be read"):
        read_store(data)


@pytest.mark.parametrize("value", ["[1]", '{"peerURLs":"x"}', '{"peerURLs":[1]}', "{"])
def test_nonsense_in_a_member_is_refused(value: str) -> None:
    store = json.loads(build_store(MEMBERS))
    member = store["Root"]["Children"]["0"]["Children"]["members"]["Children"]["dd0b5f7ddb13b49"]
    member["Children"]["raftAttributes"]["Value"] = value
    with pytest.raises(BadStore):
        read_store(json.dumps(store).encode())
