"""Members of ours and of etcd 3.5 in one cluster: membership, leases, and the version they have in
common."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest
from interop.cluster_ctl import ClusterSide
from interop.ctl import Run, run
from support.binaries import Binaries
from support.member import Member, MemberFactory
from support.wait import wait_for


@pytest.fixture
def mixed(members: MemberFactory, reference: Binaries, kvorum: Path, tmp_path: Path) -> ClusterSide:
    """Two of ours, a and c, and one of etcd's, b."""
    side = ClusterSide(reference.etcdctl, None, tmp_path)  # type: ignore[arg-type]
    side.binary, side.make = kvorum, members
    side.begin("abc", b=reference.etcd)
    side.wait_ready()
    return side


def versions(member: Member) -> dict[str, str]:
    """What a member tells others of its versions."""
    connection = http.client.HTTPConnection("127.0.0.1", member.peer_port, timeout=5)
    try:
        connection.request("GET", "/version")
        found: dict[str, str] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return found


def wait_versions(side: ClusterSide, names: str, cluster: str) -> None:
    """Until the cluster has a version, and so has the storage of our members."""

    def agreed() -> bool:
        found = [versions(side.members[name]) for name in names]
        return all(v["etcdcluster"] == cluster == v.get("storage", cluster) for v in found)

    wait_for(agreed, f"version {cluster}")


def well(side: ClusterSide, *steps: Run) -> None:
    for step in steps:
        output = side.settle(step)
        assert output.code == 0, f"etcdctl {' '.join(step.args)}: {output.stderr}"


def test_leases_and_versions_with_leaders_of_both_kinds(mixed: ClusterSide) -> None:
    wait_versions(mixed, "abc", "3.5.0")
    for leader in "ab":
        mixed.lead(leader)
        well(
            mixed,
            run("lease", "grant", "100", save="lease"),
            run("@b", "put", "k", "v", "--lease={lease}"),
            *(run(f"@{name}", "lease", "keep-alive", "{lease}", "--once") for name in "abc"),
        )
        times = [
            mixed.play(run(f"@{name}", "lease", "timetolive", "{lease}", "--keys"))[0].stdout
            for name in "abc"
        ]
        assert all("granted with TTL" in text and "keys([k])" in text for text in times), times
        well(mixed, run("@c", "lease", "revoke", "{lease}"))
        assert wait_for(mixed.same_state, "all members to hold the same")
        wait_versions(mixed, "abc", "3.5.0")


@pytest.mark.parametrize("leader", ["a", "b"])
def test_members_of_both_kinds_come_and_go(
    mixed: ClusterSide, reference: Binaries, leader: str
) -> None:
    """Through a follower, so that a promotion is passed on from one kind to the other."""
    mixed.lead(leader)
    for name, binary in {"d": reference.etcd, "e": mixed.binary}.items():
        asked = "@b" if leader == "a" else "@a"
        mixed.plan(name, binary)
        add = ("member", "add", name, "--learner", f"--peer-urls={{{name}_url}}")
        well(mixed, run(asked, *add, save=name))
        mixed.join(name)
        mixed.wait_ready_learner(name)
        well(
            mixed,
            run(asked, "member", "promote", f"{{{name}}}"),
            run(f"@{name}", "put", name, "votes"),
            run("@c", "member", "update", f"{{{name}}}", f"--peer-urls={{{name}_url}}"),
        )
        refused = mixed.settle(run(asked, "member", "promote", f"{{{name}}}"))
        assert "can only promote a learner member" in refused.stderr
        assert wait_for(mixed.same_state, "all members to hold the same")
        well(mixed, run("@c", "member", "remove", f"{{{name}}}"))
        assert mixed.members[name].wait_exit() == 0
    lists = {mixed.play(run(f"@{name}", "member", "list"))[0].stdout for name in "abc"}
    assert len({tuple(sorted(text.splitlines())) for text in lists}) == 1


def test_the_version_rises_when_the_last_old_member_has_gone(mixed: ClusterSide) -> None:
    wait_versions(mixed, "abc", "3.5.0")
    mixed.lead("a")
    mixed.saved["b"] = f"{mixed.ids()['b']:x}"
    well(mixed, run("@a", "member", "remove", "{b}"))
    assert mixed.members["b"].wait_exit() == 0
    wait_versions(mixed, "ac", "3.7.0")
    for name in "ac":
        mixed.members[name].stop()
    for name in "ac":
        mixed.members[name].spawn()
    mixed.wait_ready()
    wait_versions(mixed, "ac", "3.7.0")
    well(mixed, run("@c", "put", "k", "v"))
