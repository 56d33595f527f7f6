"""etcdctl against three of our members prints what it prints against three of etcd's."""

from __future__ import annotations

from pathlib import Path

import pytest
from interop.cluster_ctl import ClusterPair, ClusterSide
from interop.ctl import run
from interop.stories import SAME_MEMBER, STATUS_NUMBERS
from support.binaries import Binaries
from support.member import MemberFactory
from support.wait import wait_for

_TIME_LEFT = (r"remaining\(\d+s\)",)
_RETRIES = (r"(^\{.*\n)*",)
"""What a learner refuses was, up to 3.5, refused with a code upon which etcdctl tries again."""
_HASHES = (r"\b\d{5,10}\b",)


@pytest.fixture(scope="module")
def pair(
    module_members: MemberFactory,
    reference: Binaries,
    kvorum: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> ClusterPair:
    sides = []
    for binary in (reference.etcd, kvorum):
        folder = tmp_path_factory.mktemp(binary.name)
        side = ClusterSide(reference.etcdctl, None, folder)  # type: ignore[arg-type]
        side.binary, side.make = binary, module_members
        side.begin("abc")
        sides.append(side)
    for side in sides:
        side.wait_ready()
        side.lead("a")
    return ClusterPair(*sides)


@pytest.fixture
def led_by_a(pair: ClusterPair) -> ClusterPair:
    pair.each(lambda side: side.lead("a"))
    return pair


def test_what_all_members_say(led_by_a: ClusterPair) -> None:
    led_by_a.play(
        run("@c", "put", "foo", "bar"),
        run("@b", "get", "foo"),
        run("member", "list", unordered=True),
        run("@b", "member", "list", "-w", "table", unordered=True),
        run("@c", "member", "list", "-w", "fields", unordered=True),
        run("endpoint", "health", unordered=True),
        run("@b", "endpoint", "health", "--cluster", unordered=True),
        run("@b", "endpoint", "status", "--cluster", blind=STATUS_NUMBERS, unordered=True),
        run("endpoint", "status", "-w", "table", blind=STATUS_NUMBERS, unordered=True),
        run("@c", "endpoint", "hashkv", "--cluster", blind=_HASHES, unordered=True),
        run("@a", "defrag", "--cluster", unordered=True),
    )
    for side in led_by_a.sides:
        assert wait_for(side.same_state, "all members to hold the same")


def test_the_leader_is_moved(led_by_a: ClusterPair) -> None:
    led_by_a.each(lambda side: side.saved.update({n: f"{i:x}" for n, i in side.ids().items()}))
    led_by_a.play(
        run("@b", "move-leader", "{b}"),
        run("@a", "move-leader", "1234"),
        run("@a,b,c", "move-leader", "{b}"),
        run("@a", "move-leader", "{c}"),
        run("@b", "move-leader", "{b}"),
        run("@a,b,c", "endpoint", "status", blind=STATUS_NUMBERS, unordered=True),
        run("@c", "put", "after", "the move"),
    )


def test_leases_are_kept_at_any_member(led_by_a: ClusterPair) -> None:
    led_by_a.play(
        run("@b", "lease", "grant", "1000", save="lease"),
        run("@c", "put", "leased", "1", "--lease={lease}"),
        *(run(f"@{n}", "lease", "keep-alive", "{lease}", "--once") for n in "abc"),
        *(
            run(f"@{n}", "lease", "timetolive", "{lease}", "--keys", blind=_TIME_LEFT)
            for n in "abc"
        ),
        *(run(f"@{n}", "lease", "list") for n in "abc"),
        run("@b", "lease", "keep-alive", "1234", "--once"),
        run("@c", "lease", "timetolive", "1234"),
        run("@c", "lease", "revoke", "{lease}"),
        run("@b", "get", "leased"),
        run("@b", "lease", "keep-alive", "{lease}", "--once"),
        run("@c", "lease", "timetolive", "{lease}"),
        run("@c", "lease", "grant", "2", save="kept"),
        run("@b", "lease", "keep-alive", "{kept}", lines=4),
        run("@a", "lease", "revoke", "{kept}"),
    )


def test_a_member_learns_votes_moves_and_goes(led_by_a: ClusterPair) -> None:
    pair = led_by_a
    pair.each(lambda side: side.plan("d"))
    add = ("member", "add", "d", "--learner", "--peer-urls={d_url}")
    pair.settle(run("@b", *add, save="d", unordered=True))
    pair.play(
        run("@b", *add, blind=SAME_MEMBER),
        run("@a", "member", "add", "e", "--learner", "--peer-urls=http://127.0.0.1:2"),
        run("@a", "member", "promote", "{d}"),
        run("@a", "move-leader", "{d}"),
        run("@c", "member", "list", "-w", "table", unordered=True),
    )
    pair.each(lambda side: side.join("d"))
    pair.each(lambda side: side.wait_ready_learner("d"))
    pair.play(
        run("@d", "get", "foo", "--consistency=s"),
        run("@d", "get", "foo", blind=_RETRIES),
        run("@d", "put", "foo", "x", blind=_RETRIES),
        run("@d", "member", "list", blind=_RETRIES),
        run("@d", "endpoint", "status", blind=STATUS_NUMBERS),
    )
    pair.settle(run("@b", "member", "promote", "{d}"))  # which does not lead
    pair.play(
        run("@b", "member", "promote", "{d}"),
        run("@a", "member", "promote", "{d}"),
        run("@d", "put", "d", "votes"),
        run("@d", "get", "d"),
        run("@d", "member", "list", "-w", "table", unordered=True),
        run("@c", "member", "update", "{d}", "--peer-urls={a_url}"),
        run("@c", "member", "update", "{d}", "--peer-urls={d_url},http://localhost:1"),
        run("@a", "member", "list", unordered=True),
        run("@b", "put", "d", "is still there"),
    )
    pair.settle(run("@b", "member", "remove", "{d}"))
    codes = pair.each(lambda side: side.members["d"].wait_exit())
    assert codes[0] == codes[1]
    pair.play(
        run("@b", "member", "remove", "{d}"),
        run("@b", "member", "update", "{d}", "--peer-urls=http://127.0.0.1:2"),
        run("@c", "member", "list", unordered=True),
        run("@a,b,c", "endpoint", "health", unordered=True),
    )


def test_a_member_that_lost_its_disk_is_removed_and_added_again(led_by_a: ClusterPair) -> None:
    pair = led_by_a
    for number in range(20):
        pair.play(run("@a", "put", f"wiped/{number % 7}", str(number)))
    pair.each(lambda side: side.saved.update(b=f"{side.ids()['b']:x}"))
    pair.each(lambda side: side.wipe("b"))
    pair.play(run("@c", "put", "wiped", "without b"))
    pair.settle(run("@a", "member", "remove", "{b}"))
    pair.each(lambda side: side.plan("b"))
    pair.settle(run("@c", "member", "add", "b", "--peer-urls={b_url}", save="b", unordered=True))
    pair.each(lambda side: side.join("b"))
    pair.each(lambda side: side.wait_ready())
    pair.play(
        run("@b", "get", "wiped", "--prefix"),
        run("@b", "put", "wiped", "with b"),
        run("@c", "get", "wiped"),
        run("@b", "member", "list", "-w", "table", unordered=True),
        run("@a,b,c", "endpoint", "health", unordered=True),
    )
    for side in pair.sides:
        assert wait_for(side.same_state, "all members to hold the same")
