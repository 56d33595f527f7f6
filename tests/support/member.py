"""One real server process: its flags, its folder, its log, its life and death."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.ports import free_port
from support.wait import wait_for

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
# An etcd that begins again alone waits out an election time-out first: with its own, over a second.
QUICK = ["--heartbeat-interval=10", "--election-timeout=100"]


def ended(process: subprocess.Popen[bytes], timeout: float) -> int:
    """The exit code; TimeoutExpired. Popen's own way looks every 50 ms."""
    if process.returncode is None:
        watched = os.pidfd_open(process.pid)
        try:
            select.select([watched], [], [], timeout)
        finally:
            os.close(watched)
    return process.wait(0)


class MemberExited(AssertionError):
    """The server ended when it should have served."""


class Member:
    """A server on a folder of its own, which it keeps over restarts, as it keeps its ports."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        name: str = "m",
    ) -> None:
        self.binary = binary
        self.folder = folder
        self.name = name
        self.flags = list(flags)
        self.env = dict(env or {})
        self.data_dir = folder / "data"
        self.log_path = folder / "server.log"
        self.client_port = free_port()
        self.peer_port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str]:
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self.peer_port}"
        return [
            str(self.binary),
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={self.name}={peer}",
            *self.flags,
        ]

    def spawn(self, extra_env: Mapping[str, str] | None = None) -> None:
        """Start the process and return at once.

        The environment is as bare as a supervisor's: nothing of this session leaks in, but whether
        the compiled modules are tested or the sources.
        """
        assert not self.running, f"{self.name} runs already"
        kept = {name: os.environ[name] for name in ("PATH", "KVORUM_PLAIN") if name in os.environ}
        env = {"PATH": os.defpath} | kept | self.env | dict(extra_env or {})
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
            )

    def start(self, *, timeout: float = READY_SECONDS) -> Member:
        """Start, and return once the member is healthy."""
        self.spawn()
        self.wait_ready(timeout=timeout)
        return self

    def wait_ready(self, *, timeout: float = READY_SECONDS) -> None:
        wait_for(self._healthy, f"health of {self.name}", timeout=timeout)

    def _healthy(self) -> bool:
        if not self.running:
            raise MemberExited(f"{self.name} ended with {self.exit_code}:\n{self.log_tail()}")
        status, body = self.http("/health", timeout=2.0)
        return status == 200 and json.loads(body).get("health") == "true"

    def http(self, path: str, *, timeout: float = 10.0) -> tuple[int, bytes]:
        """GET over HTTP/1.1; status 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.client_port, timeout=timeout)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def wait_exit(self, *, timeout: float = STOP_SECONDS) -> int:
        """The exit code (negative: ended by that signal)."""
        assert self.process is not None
        return ended(self.process, timeout)

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL, and wait for the end."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return ended(self.process, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            raise

    def log_text(self) -> str:
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def log_entries(self) -> list[dict[str, Any]]:
        """The JSON lines of the log; what is no JSON object is left out."""
        parsed = []
        for line in self.log_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                parsed.append(entry)
        return parsed

    def clear_log(self) -> None:
        """Forget the log so far (of an ended process), to look at the next run alone."""
        assert not self.running
        self.log_path.unlink(missing_ok=True)

    def snap_dir(self) -> Path:
        return self.data_dir / "member" / "snap"

    def wal_dir(self) -> Path:
        return self.data_dir / "member" / "wal"

    def wal_files(self) -> list[Path]:
        return sorted(self.wal_dir().glob("*.wal"))

    def database(self) -> Path:
        """The storage engine's file: etcd's ``db``, Kvorum's ``kvorum.mdb``."""
        ours = self.snap_dir() / "kvorum.mdb"
        return ours if ours.exists() else self.snap_dir() / "db"


class MemberFactory:
    """Makes members in sub-folders and ends all of them, by their own process ids."""

    def __init__(self, folder: Path, log_dir: str | None = None) -> None:
        self.folder = folder
        self.log_dir = Path(log_dir) if log_dir else None
        self.made: list[Member] = []

    def __call__(
        self,
        binary: Path,
        *,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        name: str = "m",
    ) -> Member:
        where = folder or self.folder / f"{binary.name}-{len(self.made)}"
        member = Member(binary, where, flags=flags, env=env, name=name)
        self.made.append(member)
        return member

    def close(self) -> None:
        for member in self.made:
            if member.running:
                member.kill()
            self._keep_log(member)
            # Preallocated logs of 64 MB each add up over a whole test run.
            shutil.rmtree(member.data_dir, ignore_errors=True)

    def _keep_log(self, member: Member) -> None:
        if self.log_dir is None or not member.log_path.exists():
            return
        self.log_dir.mkdir(parents=True, exist_ok=True)
        label = f"{self.folder.name}-{member.folder.name}.log"
        shutil.copyfile(member.log_path, self.log_dir / label)
