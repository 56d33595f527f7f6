"""Which lists of URLs are the same places."""

from __future__ import annotations

import asyncio

import pytest
from peer_fakes import FakeNames

from kvorum.server.bootstrap.same_urls import UrlMatcher

HOSTS = {"a.example": "10.0.0.1", "b.example": "10.0.0.2", "six.example": "fd00::1"}


def difference(ours: list[str], theirs: list[str], names: FakeNames | None = None) -> str:
    async def compare() -> str:
        matcher = UrlMatcher(names or FakeNames(HOSTS), patience=0.05, interval=0.01)
        return await matcher.difference(ours, theirs)

    return asyncio.run(compare())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["http://10.0.0.1:1"], ["http://10.0.0.1:1"]),
        (["http://10.0.0.1:1", "http://10.0.0.2:1"], ["http://10.0.0.2:1", "http://10.0.0.1:1"]),
        (["http://a.example:1"], ["http://A.Example:1"]),
        (["http://[::1]:1"], ["http://[0:0:0:0:0:0:0:1]:1"]),
        (["unix://m:1"], ["unix://m:1"]),
    ],
)
def test_nobody_need_be_asked(ours: list[str], theirs: list[str]) -> None:
    names = FakeNames()
    assert difference(ours, theirs, names) == ""
    assert names.asked == []


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["http://a.example:1"], ["http://10.0.0.1:1"]),
        (["http://a.example:1", "http://b.example:1"], ["http://10.0.0.2:1", "http://10.0.0.1:1"]),
        (["http://six.example:1"], ["http://[fd00::1]:1"]),
    ],
)
def test_names_are_looked_up(ours: list[str], theirs: list[str]) -> None:
    assert difference(ours, theirs) == ""


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (
            ["http://10.0.0.1:1"],
            ["http://10.0.0.2:1"],
            'resolved urls: "http://10.0.0.1:1" != "http://10.0.0.2:1"',
        ),
        (
            ["http://a.example:1"],
            ["http://b.example:1"],
            'resolved urls: "http://10.0.0.1:1" != "http://10.0.0.2:1"',
        ),
        (
            ["http://a.example:1"],
            ["https://a.example:1"],
            'resolved urls: "http://10.0.0.1:1" != "https://10.0.0.1:1"',
        ),
        (["http://a:1"], [], 'len(["http://a:1"]) != len([])'),
        (
            ["http://a:1"],
            ["http://b:1", "http://c:1"],
            'len(["http://a:1"]) != len(["http://b:1" "http://c:1"])',
        ),
        (
            ["http://nowhere:1"],
            ["http://10.0.0.1:1"],
            'failed to resolve "http://nowhere:1" (lookup nowhere: no such host)',
        ),
        (["http://localhost:1"], ["http://127.0.0.1:1"], "localhost"),  # as etcd: never looked up
        (["unix://m:1"], ["unix://m:2"], 'resolved urls: "unix://m:1" != "unix://m:2"'),
    ],
)
def test_differences(ours: list[str], theirs: list[str], why: str) -> None:
    assert why in difference(ours, theirs)


def test_a_name_that_comes_late() -> None:
    """The name servers learn of a new member some time after it has started."""
    names = FakeNames({"a.example": ["", "", "10.0.0.1"]})
    assert difference(["http://a.example:1"], ["http://10.0.0.1:1"], names) == ""
    assert len(names.asked) == 3


def test_a_name_is_looked_up_once() -> None:
    names = FakeNames({"a.example": ["10.0.0.1"]})

    async def compare() -> list[str]:
        matcher = UrlMatcher(names, patience=0)
        return [
            await matcher.difference(["http://a.example:1"], [f"http://10.0.0.{i}:1"])
            for i in (2, 1)
        ]

    assert [bool(why) for why in asyncio.run(compare())] == [True, False]
