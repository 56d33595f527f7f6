"""Clusters of real processes, etcd's and ours in any mixture."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from support.binaries import Binaries
from support.member import Member
from support.rpc import HASH_KV, MEMBER_LIST, PUT, RANGE, Client, RpcFailed
from support.wait import wait_for

# Members that were connected for less than 5 s count as unhealthy, so the check is off.
FLAGS = ["--heartbeat-interval=20", "--election-timeout=200", "--strict-reconfig-check=false"]


class Process(Member):
    """One that need not be told who begins the cluster."""

    names_members = True

    def command(self) -> list[str]:
        words = super().command()
        if self.names_members:
            return words
        return [word for word in words if not word.startswith("--initial-cluster=")]


class Processes:
    """Members of one cluster, by name; all are ended with the test."""

    def __init__(self, folder: Path, reference: Binaries) -> None:
        self.folder = folder
        self.reference = reference
        self.members: dict[str, Process] = {}

    def plan(self, name: str, binary: Path, *flags: str) -> Process:
        """A member that is not started yet."""
        process = Process(binary, self.folder / name, name=name, flags=[*FLAGS, *flags])
        self.members[name] = process
        return process

    def initial(self, *names: str) -> str:
        """``--initial-cluster`` of these members."""
        return ",".join(f"{name}={peer_url(self.members[name])}" for name in names)

    def begin(self, binaries: dict[str, Path], *flags: str) -> list[Process]:
        """A new cluster, ready."""
        processes = [self.plan(name, binary, *flags) for name, binary in binaries.items()]
        initial = f"--initial-cluster={self.initial(*binaries)}"
        for process in processes:
            process.flags.append(initial)
            process.spawn()
        for process in processes:
            process.wait_ready()
        return processes

    def add(
        self, name: str, binary: Path, asked: Process, *flags: str, learner: bool = False
    ) -> Process:
        """Add a member to the running cluster by etcdctl, and start it as joining."""
        running = [known for known, process in self.members.items() if process.running]
        process = self.plan(name, binary, *flags)
        words = ["member", "add", name, f"--peer-urls={peer_url(process)}"]
        self.ctl(asked, *words, *(["--learner"] if learner else []))
        process.flags += [
            f"--initial-cluster={self.initial(*running, name)}",
            "--initial-cluster-state=existing",
        ]
        process.spawn()
        return process

    def ctl(self, asked: Process, *words: str) -> str:
        command = [str(self.reference.etcdctl), f"--endpoints={asked.endpoint}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> None:
        for process in self.members.values():
            if process.running:
                process.kill()
            shutil.rmtree(process.data_dir, ignore_errors=True)  # logs are large from the start


@contextmanager
def processes(folder: Path, reference: Binaries) -> Iterator[Processes]:
    made = Processes(folder, reference)
    try:
        yield made
    finally:
        made.end()


def peer_url(process: Process) -> str:
    return f"http://127.0.0.1:{process.peer_port}"


def put(process: Process, count: int, *, prefix: str = "k", value: bytes = b"v") -> None:
    with Client(process.endpoint).wait_connected() as client:
        for number in range(count):
            client.call(PUT, key=f"{prefix}{number:04d}".encode(), value=value)


def put_many(process: Process, count: int) -> None:
    """More entries than one by one could be waited for."""
    with grpc.insecure_channel(process.endpoint) as channel:
        call = channel.unary_unary(PUT.path)
        for start in range(0, count, 200):
            waiting = [
                call.future(PUT.request(key=b"many%d" % number).SerializeToString(), timeout=30)
                for number in range(start, min(start + 200, count))
            ]
            for answer in waiting:
                answer.result()


def read(process: Process, key: str) -> bytes | None:
    """A linearizable read."""
    with Client(process.endpoint).wait_connected() as client:
        found = client.call(RANGE, key=key.encode()).kvs
        return bytes(found[0].value) if found else None


def members_of(process: Process) -> list[tuple[str, bool]]:
    """Names, with whether they are learners, in alphabetical order."""
    with Client(process.endpoint).wait_connected() as client:
        return sorted((m.name, m.isLearner) for m in client.call(MEMBER_LIST).members)


def id_of(process: Process, name: str) -> int:
    with Client(process.endpoint).wait_connected() as client:
        return next(m.ID for m in client.call(MEMBER_LIST).members if m.name == name)


def hash_of(process: Process, revision: int) -> tuple[int, int] | None:
    """HashKV at a revision, None while the member has not come so far."""
    with Client(process.endpoint).wait_connected() as client:
        try:
            answer = client.call(HASH_KV, revision=revision)
        except RpcFailed:
            return None
        return answer.hash, answer.compact_revision


def assert_same_state(members: Sequence[Process]) -> int:
    """All come to hold the same; returns the revision."""
    with Client(members[0].endpoint).wait_connected() as client:
        revision = int(client.call(RANGE, key=b"x").header.revision)
    hashes = [
        wait_for(lambda m=member: hash_of(m, revision), f"revision {revision} at {member.name}")
        for member in members
    ]
    assert len(set(hashes)) == 1, dict(zip([m.name for m in members], hashes, strict=True))
    return revision
