"""A member does not begin in a cluster in which it was before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from boot_kit import ME, PEER, config_of
from peer_fakes import FakeHttp, FakeNames, members_reply

from kvorum.membership import Member
from kvorum.server.bootstrap.booted import Identity
from kvorum.server.bootstrap.new_cluster import new_cluster
from kvorum.server.errors import BadInitialCluster
from kvorum.types import MemberID

A, B = "http://10.0.0.1:1", "http://10.0.0.2:1"
OTHER = Member(MemberID(1), (A,), "a", ("http://c:1",))


def begun(folder: Path, http: FakeHttp) -> Identity:
    config = config_of(folder, initial_cluster=f"m={PEER},b={B},a={A}")
    return asyncio.run(new_cluster(config, http, FakeNames()))


def test_the_others_are_not_there_yet(tmp_path: Path) -> None:
    http = FakeHttp()
    who = begun(tmp_path, http)
    assert http.asked == [(f"{A}/members", 1.0), (f"{B}/members", 1.0)]
    assert who.member == ME
    assert [member.name for member in who.first] == [
        member.name for member in sorted(who.first, key=lambda member: member.id)
    ]
    assert {member.name for member in who.first} == {"m", "a", "b"}
    assert who.remotes == []


@pytest.mark.parametrize(
    "members",
    [
        (OTHER,),  # another cluster, or a list without us
        (OTHER, Member(ME, (PEER,), "m")),  # we never were ready
    ],
)
def test_the_others_do_not_know_that_we_ran(tmp_path: Path, members: tuple[Member, ...]) -> None:
    assert begun(tmp_path, FakeHttp({f"{B}/members": members_reply(*members)})).member == ME


def test_the_others_know_that_we_ran(tmp_path: Path) -> None:
    ran = Member(ME, (PEER,), "m", ("http://c:2",))
    with pytest.raises(BadInitialCluster, match=f"^member {ME:x} has already been bootstrapped$"):
        begun(tmp_path, FakeHttp({f"{B}/members": members_reply(OTHER, ran)}))
