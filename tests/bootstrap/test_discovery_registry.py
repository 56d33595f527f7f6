"""Who belongs to a cluster that gathers at a discovery service."""

from __future__ import annotations

import pytest

from kvorum.server.bootstrap.discovery_registry import Registry, RegistryError, parse_size
from kvorum.types import MemberID


def registry(*ids: int, token: str = "t") -> Registry:
    """Members registered one after the other."""
    made = Registry(token)
    for revision, number in enumerate(ids, 10):
        assert (
            made.add(made.key_of(MemberID(number)), f"m{number}=u{number}".encode(), revision) == ""
        )
    return made


def test_keys() -> None:
    made = Registry("tok/1/")
    assert made.size_key == b"/_etcd/registry/tok/1/_config/size"
    assert made.members_key == b"/_etcd/registry/tok/1/members"
    assert made.key_of(MemberID(0xAB)) == b"/_etcd/registry/tok/1/members/ab"


@pytest.mark.parametrize(("value", "size"), [(b"3", 3), (b"+3", 3), (b"007", 7), (b"1", 1)])
def test_sizes(value: bytes, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"three", b" 3", b"3\n", b"1_0", b"9" * 30])
def test_bad_sizes(value: bytes) -> None:
    with pytest.raises(RegistryError, match=r"^discovery: size key is bad$"):
        parse_size(value)


def test_no_size() -> None:
    with pytest.raises(RegistryError, match=r"^discovery: size key not found$"):
        parse_size(None)


def test_the_first_that_registered_are_in() -> None:
    made = Registry("t")
    for revision, number in ((30, 3), (10, 1), (20, 2)):
        made.add(made.key_of(MemberID(number)), b" m%d=u%d\n" % (number, number), revision)
    assert made.initial_cluster(2) == "m1=u1,m2=u2"
    assert made.initial_cluster(3) == "m1=u1,m2=u2,m3=u3"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (b"/_etcd/registry/other/members/5", b"a=b", "invalid peer registry key"),
        (b"/_etcd/registry/t/members/5", b"a", "invalid peer info returned from discovery service"),
        (b"/_etcd/registry/t/members/5", b"", "invalid peer info returned from discovery service"),
        (b"/_etcd/registry/t/members/5", b"\xff", "invalid peer info returned from discovery"),
        (b"/_etcd/registry/t/members/1", b"a=b", "found duplicate peer from discovery service"),
    ],
)
def test_what_is_not_taken_in(key: bytes, value: bytes, problem: str) -> None:
    made = registry(1)
    assert made.add(key, value, 99).startswith(problem)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("ids", "member", "size", "full"),
    [
        ((), 1, 1, False),
        ((1,), 1, 1, False),
        ((1,), 2, 1, True),
        ((1, 2), 3, 3, False),
        ((1, 2, 3), 3, 3, False),
        ((1, 2, 3), 4, 3, True),
        ((1, 2, 3, 4), 4, 3, True),  # it registered too late
    ],
)
def test_room(ids: tuple[int, ...], member: int, size: int, full: bool) -> None:
    made = registry(*ids)
    if full:
        with pytest.raises(RegistryError, match=r"^discovery: cluster is full$"):
            made.require_room(MemberID(member), size)
    else:
        made.require_room(MemberID(member), size)
