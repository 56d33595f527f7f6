"""What a real etcd tells a member that wants to join, or to begin again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boot_kit import booting, config_of, refusal
from support.binaries import Binaries
from support.member import Member as Process
from support.ports import free_port

from kvorum.config import ServerConfig, parse_urls
from kvorum.membership import cluster_id, member_id
from kvorum.server.errors import BadInitialCluster, CannotJoin
from kvorum.types import MemberID


@pytest.fixture(scope="module")
def running(reference: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(
        reference.etcd,
        tmp_path_factory.mktemp("etcd"),
        name="a",
        flags=["--initial-cluster-token=t"],
    )
    process.start()
    yield process
    process.kill()


def url_of(process: Process) -> str:
    return f"http://127.0.0.1:{process.peer_port}"


def ctl(reference: Binaries, process: Process, *words: str) -> Any:
    command = [str(reference.etcdctl), f"--endpoints={process.endpoint}", "-w=json", *words]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30)
    return json.loads(done.stdout)


def config(
    folder: Path, initial: str, own: str, state: str = "existing", **more: Any
) -> ServerConfig:
    return config_of(
        folder,
        initial_advertise_peer_urls=parse_urls(own),
        initial_cluster=initial,
        initial_cluster_state=state,
        **more,
    )


def test_a_member_that_was_added(tmp_path: Path, reference: Binaries, running: Process) -> None:
    own = f"http://127.0.0.1:{free_port()}"
    added = ctl(reference, running, "member", "add", "m", f"--peer-urls={own}", "--learner")
    try:
        initial = f"a={url_of(running)},m={own}"
        with booting(config(tmp_path, initial, own)) as booted:
            assert booted.member == MemberID(added["member"]["ID"])
            identity = member_id([url_of(running)], "t")
            assert booted.cluster.id == cluster_id([identity]) == added["header"]["cluster_id"]
            (remote,) = booted.remotes
            assert (remote.id, remote.name, remote.peer_urls) == (
                identity,
                "a",
                (url_of(running),),
            )
            assert booted.storage.last_index() == 0
    finally:
        ctl(reference, running, "member", "remove", f"{added['member']['ID']:x}")


def test_a_member_that_was_not_added(tmp_path: Path, reference: Binaries, running: Process) -> None:
    """Etcd itself says the same, but for how it shows the cluster."""
    own = f"http://127.0.0.1:{free_port()}"
    initial = f"a={url_of(running)},m={own}"
    ours = refusal(config(tmp_path, initial, own), CannotJoin)
    process = Process(
        reference.etcd,
        tmp_path / "etcd",
        flags=[
            f"--listen-peer-urls={own}",
            f"--initial-advertise-peer-urls={own}",
            f"--initial-cluster={initial}",
            "--initial-cluster-state=existing",
        ],
    )
    process.spawn()
    assert process.wait_exit() == 1
    theirs = process.log_entries()[-1]["error"]
    for text in (ours, theirs):
        assert text.startswith("error validating peerURLs {ClusterID:")
        assert text.endswith("}: member count is unequal")


def test_a_member_that_is_another(tmp_path: Path, reference: Binaries, running: Process) -> None:
    own, other = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    added = ctl(reference, running, "member", "add", "m", f"--peer-urls={other}", "--learner")
    try:
        text = refusal(config(tmp_path, f"a={url_of(running)},m={own}", own), CannotJoin)
        assert f"no match found for existing member ({added['member']['ID']:x}, [{other}])" in text
    finally:
        ctl(reference, running, "member", "remove", f"{added['member']['ID']:x}")


def test_a_member_that_lost_its_data_does_not_begin_again(
    tmp_path: Path, reference: Binaries
) -> None:
    """With nothing in it, it would vote a second time. Both say the same."""
    ports = [free_port() for _ in range(2)]
    initial = ",".join(
        f"{name}=http://127.0.0.1:{port}" for name, port in zip("ab", ports, strict=True)
    )
    processes = []
    for name, port in zip("ab", ports, strict=True):
        process = Process(
            reference.etcd,
            tmp_path / name,
            name=name,
            flags=[
                f"--listen-peer-urls=http://127.0.0.1:{port}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{port}",
                f"--initial-cluster={initial}",
            ],
        )
        processes.append(process)
    a, b = processes
    try:
        a.spawn()
        b.spawn()
        a.wait_ready()
        b.wait_ready()
        b.kill()
        b.clear_log()
        b.data_dir = b.folder / "lost"
        b.spawn()
        assert b.wait_exit() == 1
        settings = config(
            tmp_path,
            initial,
            f"http://127.0.0.1:{ports[1]}",
            "new",
            name="b",
            initial_cluster_token="etcd-cluster",
        )
        ours = refusal(settings, BadInitialCluster)
        identity = member_id([f"http://127.0.0.1:{ports[1]}"], "etcd-cluster")
        assert ours == f"member {identity:x} has already been bootstrapped"
        assert ours == b.log_entries()[-1]["error"]
    finally:
        for process in processes:
            if process.running:
                process.kill()
