"""Which member of a running cluster we are, and when it will not have us."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from boot_kit import config_of
from peer_fakes import FakeHttp, FakeNames, members_reply, reply, version_reply

from kvorum.config import parse_urls
from kvorum.membership import Member
from kvorum.peer.http_client import HttpReply
from kvorum.raft.types import EMPTY_HARD_STATE, ConfState
from kvorum.server.bootstrap.booted import Identity
from kvorum.server.bootstrap.initial import parse_initial
from kvorum.server.bootstrap.join import join
from kvorum.server.bootstrap.same_urls import UrlMatcher
from kvorum.server.bootstrap.start import bootstrap
from kvorum.server.errors import BadInitialCluster, CannotJoin, StartError
from kvorum.types import MemberID

A, B, ME = "http://10.0.0.1:1", "http://10.0.0.2:1", "http://10.0.0.9:1"
INITIAL = f"a={A},b={B},m={ME}"
ONE = Member(MemberID(1), (A,), "a", ("http://c:1",))
TWO = Member(MemberID(2), (B,), "b", ("http://c:2",))
NEW = Member(MemberID(9), (ME,))


def cluster(*members: Member, version: str = "3.7.0", going_down: str = "false") -> FakeHttp:
    """All members but the new one answer."""
    replies: dict[str, HttpReply] = {}
    for url in (A, B):
        replies[f"{url}/members"] = members_reply(*members)
        replies[f"{url}/version"] = version_reply(version)
        replies[f"{url}/downgrade/enabled"] = reply(going_down)
    return FakeHttp(replies)


def joined(
    folder: Path,
    http: FakeHttp,
    initial: str = INITIAL,
    names: FakeNames | None = None,
    **settings: Any,
) -> Identity:
    config = config_of(folder, initial_cluster_state="existing", **settings)

    async def ask() -> Identity:
        matcher = UrlMatcher(names or FakeNames(), patience=0)
        return await join(config, parse_initial(initial, "m", "tok"), http, matcher)

    return asyncio.run(ask())


def test_the_cluster_tells_who_we_are(tmp_path: Path) -> None:
    who = joined(tmp_path, cluster(TWO, NEW, ONE))
    assert who == Identity(MemberID(9), 0xABC, first=[], remotes=[ONE, TWO])


def test_names_of_hosts_count_as_their_addresses(tmp_path: Path) -> None:
    names = FakeNames({"a.example": "10.0.0.1", "m.example": "10.0.0.9"})
    initial = f"a=http://a.example:1,b={B},m=http://m.example:1"
    http = cluster(ONE, TWO, NEW)
    http.replies["http://a.example:1/members"] = http.replies[f"{A}/members"]
    assert joined(tmp_path, http, initial, names).member == 9


def test_names_in_the_configuration_need_not_be_the_members(tmp_path: Path) -> None:
    who = joined(tmp_path, cluster(ONE, TWO, NEW), f"x={A},y={B},m={ME}")
    assert [member.name for member in who.remotes] == ["a", "b"]


def test_the_first_that_answers_is_asked(tmp_path: Path) -> None:
    http = cluster(ONE, TWO, NEW)
    del http.replies[f"{A}/members"]
    assert joined(tmp_path, http).member == 9
    asked = [(place, seconds) for place, seconds in http.asked if place.endswith("/members")]
    assert asked == [(f"{A}/members", 10.0), (f"{B}/members", 10.0)]
    assert (f"{A}/version", 7.0) in http.asked


def test_a_member_that_does_not_know_us_yet_is_passed_over(tmp_path: Path) -> None:
    """A leader whose quorum we are needed for cannot tell the others of us before we are there."""
    http = cluster(ONE, TWO, NEW)
    for known in [(), (ONE, TWO)]:
        http.replies[f"{A}/members"] = members_reply(*known)
        assert joined(tmp_path, http).member == 9
    http.replies[f"{B}/members"] = members_reply(TWO)
    with pytest.raises(CannotJoin, match=r"1=a.* 2=b.*: member count is unequal"):
        joined(tmp_path, http)
    del http.replies[f"{B}/members"]
    with pytest.raises(CannotJoin, match="member count is unequal"):
        joined(tmp_path, http)


@pytest.mark.parametrize(
    "odd",
    [
        reply("not JSON", cluster="abc"),
        reply("{}", cluster="abc"),
        reply('[{"id":"x"}]', cluster="abc"),
        reply('[{"id":1,"peerURLs":7}]', cluster="abc"),
        reply("[]"),
        reply("[]", cluster="xyz"),
        reply(b"\xff", cluster="abc"),
        reply("404 page not found\n", status=404),
    ],
)
def test_odd_answers_are_passed_over(tmp_path: Path, odd: HttpReply) -> None:
    http = cluster(ONE, TWO, NEW)
    http.replies[f"{A}/members"] = odd
    assert joined(tmp_path, http).member == 9
    http.replies[f"{B}/members"] = odd
    with pytest.raises(CannotJoin, match="could not retrieve cluster information"):
        joined(tmp_path, http)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([], "failed to get raft cluster member(s) from the given URLs"),
        ([ONE, TWO], "member count is unequal"),
        (
            [ONE, TWO, Member(MemberID(9), ("http://10.0.0.8:1",))],
            "PeerURLs: no match found for existing member (9, [http://10.0.0.8:1]), last resolver"
            f' error (resolved urls: "http://10.0.0.8:1" != "{ME}")',
        ),
    ],
)
def test_another_cluster_than_configured(tmp_path: Path, members: list[Member], why: str) -> None:
    with pytest.raises(CannotJoin) as caught:
        joined(tmp_path, cluster(*members))
    text = str(caught.value)
    assert text.endswith(why)
    start = "error validating peerURLs {ClusterID:abc" if members else "cannot fetch cluster info"
    assert text.startswith(start)


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(CannotJoin) as caught:
        joined(tmp_path, FakeHttp())
    assert str(caught.value) == (
        "cannot fetch cluster info from peer urls:"
        " could not retrieve cluster information from the given URLs"
    )


@pytest.mark.parametrize(
    ("version", "going_down", "fits"),
    [
        ("3.0.0", "false", True),
        ("3.5.0", "false", True),
        ("3.7.0", "false", True),
        ("2.9.0", "false", False),
        ("3.8.0", "false", False),
        ("4.0.0", "false", False),
        ("not_decided", "false", False),  # nobody is left who knows
        ("3.8.0", "true", True),  # it is on its way down to us
        ("3.7.0", "true", False),
        ("3.7.0", "nonsense", True),
    ],
)
def test_versions(tmp_path: Path, version: str, going_down: str, fits: bool) -> None:
    http = cluster(ONE, TWO, NEW, version=version, going_down=going_down)
    if fits:
        assert joined(tmp_path, http).member == 9
        return
    with pytest.raises(CannotJoin, match=r"^incompatible with current running cluster$"):
        joined(tmp_path, http)


def test_one_member_may_be_down_while_we_join(tmp_path: Path) -> None:
    http = cluster(ONE, TWO, NEW)
    del http.replies[f"{A}/version"], http.replies[f"{A}/downgrade/enabled"]
    assert joined(tmp_path, http).member == 9
    http.replies[f"{B}/version"] = version_reply("3.9.0")
    with pytest.raises(CannotJoin):
        joined(tmp_path, http)
    del http.replies[f"{B}/version"]
    with pytest.raises(CannotJoin):
        joined(tmp_path, http)


def test_one_member_that_is_too_new_is_enough(tmp_path: Path) -> None:
    http = cluster(ONE, TWO, NEW)
    http.replies[f"{B}/version"] = version_reply("3.9.0")
    with pytest.raises(CannotJoin):
        joined(tmp_path, http)


@pytest.mark.parametrize(("learner", "asks"), [(False, False), (True, True)])
def test_a_single_member_that_waits_for_us_cannot_be_asked(
    tmp_path: Path, learner: bool, asks: bool
) -> None:
    """Without us it has no quorum any more, so it cannot say whether it is going down."""
    http = cluster(ONE, Member(MemberID(9), (ME,), is_learner=learner))
    assert joined(tmp_path, http, f"a={A},m={ME}").member == 9
    assert ((f"{A}/downgrade/enabled", 7.0) in http.asked) is asks


def test_too_many_learners(tmp_path: Path) -> None:
    learners = [Member(m.id, m.peer_urls, m.name, is_learner=True) for m in (TWO, NEW)]
    with pytest.raises(CannotJoin, match=r"^membership: too many learner members in cluster$"):
        joined(tmp_path, cluster(ONE, *learners))
    assert joined(tmp_path, cluster(ONE, *learners), max_learners=2).member == 9


def test_discovery_makes_no_sense(tmp_path: Path) -> None:
    endpoints: dict[str, Any] = {"discovery_endpoints": ("127.0.0.1:1",), "discovery_token": "t"}
    with pytest.raises(BadInitialCluster, match="discovery URL should not be set when joining"):
        joined(tmp_path, cluster(ONE, TWO, NEW), **endpoints)


def test_the_log_of_a_member_that_joins_is_empty(tmp_path: Path) -> None:
    """It must not begin with entries of its own; a start that was cut off goes on waiting, though
    the cluster may be another one by now."""
    config = config_of(
        tmp_path,
        initial_cluster_state="existing",
        initial_cluster=INITIAL,
        initial_advertise_peer_urls=parse_urls(ME),
    )
    for http, remotes in ((cluster(ONE, TWO, NEW), [ONE, TWO]), (FakeHttp(), [])):

        async def boot(http: FakeHttp = http) -> None:
            booted = await bootstrap(config, asyncio.get_running_loop(), http, FakeNames())
            try:
                assert (booted.member, booted.cluster.id) == (9, 0xABC)
                assert booted.cluster.members == {}
                assert booted.storage.initial_state() == (EMPTY_HARD_STATE, ConfState())
                assert booted.storage.last_index() == 0
                assert booted.remotes == remotes  # noqa: B023
            finally:
                booted.wal.close()
                booted.backend.close()

        asyncio.run(boot())


def test_nothing_is_left_behind_when_it_cannot_join(tmp_path: Path) -> None:
    config = config_of(tmp_path, initial_cluster_state="existing", initial_cluster=INITIAL)

    async def boot() -> None:
        with pytest.raises(StartError):
            await bootstrap(config, asyncio.get_running_loop(), FakeHttp(), FakeNames())

    asyncio.run(boot())
    assert not Path(config.wal_path).exists()
    assert list(Path(config.snap_dir).iterdir()) == []
