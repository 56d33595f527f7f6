"""Whom the transport is told to speak with."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from members_kit import ME, THREE, TWO, DictBuckets, member

from kvorum.membership import Cluster, Member
from kvorum.server.cluster.peerlist import PeerList
from kvorum.server.confchange import Change
from kvorum.types import MemberID


class Wire:
    """The transport, as far as it is used here."""

    def __init__(self) -> None:
        self.peers: dict[MemberID, tuple[str, ...]] = {}

    def add_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        assert member != ME
        self.peers.setdefault(member, _checked(urls))

    def update_peer(self, member: MemberID, urls: Iterable[str]) -> None:
        assert member != ME
        checked = _checked(urls)
        if member in self.peers:
            self.peers[member] = checked

    def remove_peer(self, member: MemberID) -> None:
        assert member != ME
        self.peers.pop(member, None)


def _checked(urls: Iterable[str]) -> tuple[str, ...]:
    checked = tuple(urls)
    if not checked or any("://" not in url for url in checked):
        raise ValueError("bad URLs")
    return checked


class Bench:
    def __init__(self, *members: Member) -> None:
        self.wire = Wire()
        self.cluster = Cluster(7, ME, DictBuckets())
        for one in members:
            self.cluster.add(one)
        self.list = PeerList(self.cluster, lambda: self.wire)  # type: ignore[arg-type,return-value]


def test_all_others_are_met() -> None:
    bench = Bench()
    bench.list.meet([member(ME), member(TWO), member(TWO), member(THREE)])
    assert set(bench.wire.peers) == {TWO, THREE}


def test_changes_are_followed() -> None:
    bench = Bench()
    bench.list.changed(Change("add", TWO, ("http://a:1",)))
    bench.list.changed(Change("add", ME, ("http://me:1",)))
    assert bench.wire.peers == {TWO: ("http://a:1",)}
    bench.list.changed(Change("promote", TWO))
    bench.list.changed(Change("update", TWO, ("http://b:1",)))
    bench.list.changed(Change("update", ME, ("http://b:2",)))
    assert bench.wire.peers == {TWO: ("http://b:1",)}
    bench.list.changed(Change("remove", TWO))
    bench.list.changed(Change("remove", ME))
    assert bench.wire.peers == {}


def test_a_list_that_was_replaced() -> None:
    bench = Bench(member(ME), member(TWO))
    bench.list.meet(bench.cluster.others())
    former = list(bench.cluster.members)
    bench.cluster.remove(TWO)
    bench.cluster.add(member(THREE))
    bench.list.replaced(former)
    assert set(bench.wire.peers) == {THREE}
    bench.cluster.set_peer_urls(THREE, ["http://new:1"])
    bench.list.replaced([THREE])
    assert bench.wire.peers == {THREE: ("http://new:1",)}


@pytest.mark.parametrize("urls", [(), ("nonsense",)])
def test_urls_that_nobody_could_use(urls: tuple[str, ...]) -> None:
    """They come out of the log, so the member has to go on with them there."""
    bench = Bench(member(ME), Member(TWO, urls))
    bench.list.meet(bench.cluster.others())
    bench.list.changed(Change("add", TWO, urls))
    bench.list.replaced([TWO])
    assert bench.wire.peers == {}
    bench.list.changed(Change("add", THREE, ("http://a:1",)))
    bench.list.changed(Change("update", THREE, urls))
    assert bench.wire.peers == {THREE: ("http://a:1",)}
