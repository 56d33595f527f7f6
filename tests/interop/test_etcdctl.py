"""The unmodified etcdctl prints the same whether it talks to etcd or to the server under test."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from interop.ctl import Run, Side
from interop.stories import STORIES, TO_COME
from support.binaries import Binaries
from support.member import MemberFactory
from support.rpc import ALARM, PUT, Client

from kvorum.pb import etcdserverpb as pb


class Pair:
    """The reference and the tested server, with the same commands run on both."""

    def __init__(self, sides: list[Side]) -> None:
        self.sides = sides
        self._pool = ThreadPoolExecutor(len(sides))

    def play(self, step: Run) -> None:
        old, new = self._pool.map(lambda side: side.play(step), self.sides)
        assert new == old, f"etcdctl {' '.join(step.args)}"


@pytest.fixture(scope="module")
def pair(
    module_members: MemberFactory,
    reference: Binaries,
    kvorum: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    members = [module_members(binary) for binary in (reference.etcd, kvorum)]
    for member in members:
        member.spawn()
    sides = []
    for member in members:
        member.wait_ready()
        side = Side(reference.etcdctl, member, tmp_path_factory.mktemp("etcdctl"))
        side.learn_ids()
        sides.append(side)
    return Pair(sides)


def _story(name: str) -> ParameterSet:
    if name not in TO_COME:
        return pytest.param(name)
    return pytest.param(name, marks=pytest.mark.xfail(reason=f"to come: {TO_COME[name]}"))


@pytest.mark.parametrize("story", [_story(name) for name in STORIES])
def test_etcdctl_prints_the_same(pair: Pair, story: str) -> None:
    for step in STORIES[story]:
        pair.play(step)


def test_a_full_store_refuses_until_it_is_disarmed(pair: Pair) -> None:
    for side in pair.sides:
        with Client(side.member.endpoint) as client:
            alarm = {"action": pb.AlarmRequest.ACTIVATE, "alarm": pb.NOSPACE}
            member_id = client.call(PUT, key=b"full").header.member_id
            client.call(ALARM, memberID=member_id, **alarm)
    for args in (
        ("alarm", "list"),
        ("put", "full", "1"),
        ("get", "full"),
        ("del", "full"),
        ("lease", "grant", "100"),
        ("endpoint", "health"),
        ("alarm", "disarm"),
        ("alarm", "list"),
        ("put", "full", "1"),
    ):
        pair.play(Run(args))


def test_a_difference_would_be_noticed(pair: Pair) -> None:
    """The comparison is not so lenient that it lets one wrong byte of a value pass."""
    for side, value in zip(pair.sides, (b"1", b"2"), strict=True):
        with Client(side.member.endpoint) as client:
            client.call(PUT, key=b"planted", value=value)
    for form in ("simple", "json", "fields", "protobuf"):
        with pytest.raises(AssertionError, match="etcdctl get planted"):
            pair.play(Run(("get", "planted", "-w", form)))
