"""Members that begin, join, restart and are left alone, beside real etcd 3.5 members.

A Kvorum member beside etcd 3.5 works as 3.5; on its own it sets the cluster version to 3.7, and
then 3.5 will not join.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Processes, assert_same_state, id_of, members_of, processes, put, put_many, read
from support.binaries import Binaries
from support.wait import wait_for


@pytest.fixture
def cluster(tmp_path: Path, reference: Binaries) -> Iterator[Processes]:
    with processes(tmp_path, reference) as made:
        yield made


def test_three_begin_and_begin_again(cluster: Processes, kvorum: Path) -> None:
    """After all were killed they find each other again, whatever the flags say by then."""
    three = cluster.begin(dict.fromkeys("abc", kvorum))
    put(three[0], 20)
    assert [read(member, "k0019") for member in three] == [b"v"] * 3
    assert members_of(three[1]) == [("a", False), ("b", False), ("c", False)]
    for member in three:
        member.kill()
        member.flags.append("--initial-cluster=z=http://127.0.0.1:1")
        member.spawn()
    for member in three:
        member.wait_ready()
    put(three[2], 5, prefix="again")
    assert_same_state(three)


@pytest.mark.parametrize("running", ["a", "ab"])
def test_joining_etcd(cluster: Processes, kvorum: Path, running: str) -> None:
    """One of ours is added to members of etcd, catches up, and takes part."""
    members = cluster.begin(dict.fromkeys(running, cluster.reference.etcd))
    put(members[0], 50)
    ours = cluster.add("k", kvorum, members[0])
    ours.wait_ready()
    members.append(ours)
    assert_same_state(members)
    put(ours, 20, prefix="ours")
    put(members[0], 20, prefix="theirs")
    assert read(ours, "theirs0019") == b"v"
    assert_same_state(members)
    assert ("k", False) in members_of(members[0])


def test_joining_etcd_with_a_snapshot(cluster: Processes, kvorum: Path) -> None:
    """What the new member needs of the log is gone (etcd 3.5 keeps 5,000 entries): it is sent the
    database."""
    (theirs,) = cluster.begin({"a": cluster.reference.etcd}, "--snapshot-count=100")
    put_many(theirs, 5300)
    ours = cluster.add("k", kvorum, theirs)
    ours.wait_ready()
    assert_same_state([theirs, ours])
    assert any(line["msg"] == "applied snapshot" for line in ours.log_entries())
    ours.kill()
    ours.spawn()
    ours.wait_ready()
    put(ours, 5, prefix="after")
    assert_same_state([theirs, ours])


def test_joining_as_a_learner(cluster: Processes, kvorum: Path) -> None:
    (theirs,) = cluster.begin({"a": cluster.reference.etcd})
    put(theirs, 10)
    ours = cluster.add("k", kvorum, theirs, learner=True)
    wait_for(lambda: ("k", True) in members_of(theirs), "the learner's name")
    cluster.ctl(theirs, "member", "promote", f"{id_of(theirs, 'k'):x}")
    assert members_of(theirs) == [("a", False), ("k", False)]
    put(ours, 5, prefix="voter")
    assert_same_state([theirs, ours])


def test_etcd_joins_ours(cluster: Processes, kvorum: Path) -> None:
    """With an etcd 3.5 from the beginning, the cluster is one that another 3.5 can join."""
    etcd = cluster.reference.etcd
    mixed = cluster.begin({"a": kvorum, "b": etcd, "c": kvorum})
    put(mixed[0], 50)
    theirs = cluster.add("d", etcd, mixed[0])
    theirs.wait_ready()
    put(theirs, 10, prefix="theirs")
    assert_same_state([*mixed, theirs])


def test_an_older_etcd_cannot_join_ours_alone(cluster: Processes, kvorum: Path) -> None:
    (ours,) = cluster.begin({"a": kvorum})
    theirs = cluster.add("b", cluster.reference.etcd, ours, learner=True)
    assert theirs.wait_exit() == 1
    assert theirs.log_entries()[-1]["error"] == "incompatible with current running cluster"


def test_the_place_of_an_etcd_is_taken(cluster: Processes, kvorum: Path) -> None:
    """Killed, in a cluster of three, its data directory is gone on with."""
    etcd = cluster.reference.etcd
    three = cluster.begin(dict.fromkeys("abc", etcd))
    put(three[0], 30)
    for member in three[:2]:
        member.kill()
        member.binary = kvorum
        member.spawn()
        member.wait_ready()
        put(member, 10, prefix=member.name)
        assert_same_state(three)
    assert members_of(three[2]) == [("a", False), ("b", False), ("c", False)]


@pytest.mark.parametrize("left_by_etcd", [False, True])
def test_one_is_left_of_three(cluster: Processes, kvorum: Path, left_by_etcd: bool) -> None:
    """No quorum will ever be there again: the last one goes on alone, with all that was
    acknowledged, and others can join it."""
    binary = cluster.reference.etcd if left_by_etcd else kvorum
    three = cluster.begin(dict.fromkeys("abc", binary))
    put(three[0], 30)
    revision = assert_same_state(three)
    for member in three:
        member.kill()
    last = three[1]
    last.binary = kvorum
    last.flags.append("--force-new-cluster")
    last.start()
    assert members_of(last) == [("b", False)]
    assert read(last, "k0029") == b"v"
    put(last, 5, prefix="alone")
    last.flags.remove("--force-new-cluster")
    last.kill()
    last.start()
    assert members_of(last) == [("b", False)]
    fresh = cluster.add("d", kvorum, last)
    fresh.wait_ready()
    put(fresh, 5, prefix="two")
    assert assert_same_state([last, fresh]) == revision + 10


def test_discovery(cluster: Processes, kvorum: Path) -> None:
    """A Kvorum member is the discovery service of others."""
    (service,) = cluster.begin({"service": kvorum})
    cluster.ctl(service, "put", "/_etcd/registry/tok/_config/size", "3")
    flags = ("--discovery-token=tok", f"--discovery-endpoints={service.endpoint}")
    three = [cluster.plan(name, kvorum, *flags) for name in "abc"]
    for member in three:
        member.names_members = False
        member.spawn()
    for member in three:
        member.wait_ready()
    put(three[0], 5)
    assert_same_state(three)
    late = cluster.plan("d", kvorum, *flags)
    late.names_members = False
    late.spawn()
    assert late.wait_exit() == 1
    messages = [(line["level"], line["msg"]) for line in late.log_entries()]
    assert ("warn", "failed to bootstrap; discovery token was already used") in messages
    assert "discovery: cluster is full" in late.log_entries()[-1]["error"]


def test_a_learner_is_left(cluster: Processes, kvorum: Path) -> None:
    """It has all that was acknowledged, and nobody else has anything: it becomes a voter."""
    (lost,) = cluster.begin({"a": kvorum})
    put(lost, 10)
    last = cluster.add("k", kvorum, lost, learner=True)
    wait_for(lambda: ("k", True) in members_of(lost), "the learner's name")
    lost.kill()
    last.kill()
    last.flags.append("--force-new-cluster")
    last.start()
    assert members_of(last) == [("k", False)]
    put(last, 1, prefix="alone")
    assert read(last, "k0009") == b"v"
