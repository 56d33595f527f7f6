"""The process around a member: signals, deaths, exit codes, what reaches standard error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

# A server process whose member does what the test wants, so that rare moments come at once.
STAND_IN = """
import asyncio, sys
import kvorum.cli.run as run
from kvorum.cli.server import main
from kvorum.server.errors import BadInitialCluster, StartError

class Member:
    def __init__(self, config):
        self.died = asyncio.get_running_loop().create_future()
    async def start(self):
        {start}
    async def stop(self):
        {stop}
    async def wait_fatal(self):
        return await asyncio.shield(self.died)

run.Member = Member
sys.exit(main(sys.argv[1:]))
"""


class Process:
    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True
        )
        assert self.popen.stderr is not None
        self.stderr: IO[str] = self.popen.stderr
        self.seen: list[dict[str, Any]] = []

    def wait_for(self, msg: str) -> dict[str, Any]:
        for line in self.stderr:
            record: dict[str, Any] = json.loads(line)
            self.seen.append(record)
            if record["msg"] == msg:
                return record
        raise AssertionError(f"no {msg!r} in {self.seen}")

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> int:
        """The exit code; what was still unread of standard error is kept."""
        self.seen += [json.loads(line) for line in self.stderr]
        return self.popen.wait(20)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.popen.kill()
        process.popen.communicate()


@pytest.fixture
def stand_in(processes: list[Process], tmp_path: Path) -> Any:
    def start(
        *, start: str = "pass", stop: str = "pass", flags: tuple[str, ...] = (), **env: str
    ) -> Process:
        code = STAND_IN.format(start=start, stop=stop)
        command = [sys.executable, "-c", code, f"--data-dir={tmp_path}/d", *flags]
        process = Process(command, {"PATH": os.environ["PATH"], **env})
        processes.append(process)
        return process

    return start


UP = "successfully notified init daemon"


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupt")]
)
def test_a_signal_stops_cleanly_and_then_ends_the_process(
    stand_in: Any, number: signal.Signals, name: str
) -> None:
    process = stand_in(stop="run.log.get_logger().info('stopped')")
    process.wait_for(UP)
    process.send(number)
    assert process.wait_for("received signal; shutting down")["signal"] == name
    assert process.wait_for("stopped")
    assert process.end() == -number
    assert {record["level"] for record in process.seen} <= {"info", "warn"}


def test_a_second_signal_ends_it_at_once(stand_in: Any) -> None:
    process = stand_in(stop="await self.died")
    process.wait_for(UP)
    process.send(signal.SIGTERM)
    process.wait_for("received signal; shutting down")
    process.send(signal.SIGINT)
    assert process.end() == -signal.SIGINT


def test_a_signal_during_the_start_ends_it_at_once(stand_in: Any) -> None:
    process = stand_in(start="run.log.get_logger().info('starting'); await self.died")
    process.wait_for("starting")
    process.send(signal.SIGINT)
    assert process.end() == -signal.SIGINT


AS_PROCESS_1 = STAND_IN.replace(
    "run.Member = Member",
    """run.Member = Member

def notify():
    run.log.get_logger().info("up", pid=os.getpid())
    os.kill(1, signal.SIGTERM)  # only in here is the process number 1

run.process.notify_init_daemon = notify""",
).replace("import asyncio, sys", "import asyncio, os, signal, sys")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_as_process_1_it_exits_with_0(processes: list[Process], tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("may not make a pid namespace")
    code = AS_PROCESS_1.format(start="pass", stop="run.log.get_logger().info('stopped')")
    command = [*unshare, sys.executable, "-c", code, f"--data-dir={tmp_path}/d"]
    process = Process(command, {"PATH": os.environ["PATH"]})
    processes.append(process)
    assert process.wait_for("up")["pid"] == 1
    process.wait_for("stopped")
    assert process.end() == 0


@pytest.mark.parametrize(
    ("raising", "error", "is_bug"),
    [
        ("StartError('listen x: taken')", "listen x: taken", False),
        ("OSError(28, 'No space left')", "[Errno 28] No space left", False),
        ("BadInitialCluster('no name')", "no name", False),
        ("ValueError('oops')", "oops", True),
    ],
)
def test_a_failed_start_is_one_fatal_line(
    stand_in: Any, raising: str, error: str, is_bug: bool
) -> None:
    process = stand_in(start=f"raise {raising}")
    assert process.end() == 1
    *_, last = process.seen
    assert (last["level"], last["msg"], last["error"]) == ("fatal", "failed to start", error)
    assert ("stacktrace" in last) == is_bug
    assert [record["level"] for record in process.seen].count("fatal") == 1


def test_a_cluster_that_does_not_fit_gets_hints(stand_in: Any) -> None:
    process = stand_in(start="raise BadInitialCluster('no name')")
    process.end()
    hints = {record["msg"] for record in process.seen if record["level"] == "warn"}
    assert {
        "forgot to set --initial-cluster?",
        "forgot to set --initial-advertise-peer-urls?",
    } <= hints


def test_a_death_is_one_fatal_line(stand_in: Any) -> None:
    dying = "asyncio.get_running_loop().call_later(0.01, self.died.set_result, OSError('disk'))"
    process = stand_in(start=dying, stop="await self.died")
    assert process.end() == 1
    *_, last = process.seen
    assert (last["level"], last["msg"], last["error"]) == ("fatal", "member died", "disk")


def test_nothing_but_log_lines_reaches_standard_error(stand_in: Any) -> None:
    """`wait_for` and `end` read every line as JSON."""
    start = (
        "import logging, threading, warnings; "
        "logging.getLogger('asyncio').error('slow %s', 'callback'); "
        "warnings.warn('old'); "
        "asyncio.get_running_loop().call_soon(lambda: 1 / 0); "
        "t = threading.Thread(target=lambda: [][1], name='w'); t.start(); t.join(); "
        "self.lost = asyncio.ensure_future(asyncio.sleep(0))"
    )
    process = stand_in(start=start)
    process.wait_for(UP)
    process.send(signal.SIGTERM)
    assert process.end() == -signal.SIGTERM
    by_msg = {record["msg"]: record for record in process.seen}
    assert by_msg["slow callback"]["logger"] == "asyncio"
    assert by_msg["exception in a thread"]["thread"] == "w"
    assert by_msg["exception in a thread"]["error"] == "list index out of range"
    assert any("UserWarning: old" in msg for msg in by_msg)
    assert any(record.get("error") == "division by zero" for record in process.seen)


def test_tells_the_init_daemon(stand_in: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        daemon.settimeout(20)
        process = stand_in(NOTIFY_SOCKET=path)
        assert daemon.recv(100) == b"READY=1"
        process.wait_for(UP)


def test_an_init_daemon_that_does_not_listen_is_no_reason_to_stop(
    stand_in: Any, tmp_path: Path
) -> None:
    process = stand_in(NOTIFY_SOCKET=str(tmp_path / "none"))
    process.wait_for("failed to notify systemd for readiness")
    process.send(signal.SIGTERM)
    assert process.end() == -signal.SIGTERM


def test_raises_the_limit_of_open_files(stand_in: Any) -> None:
    start = "import resource; run.log.get_logger().info('files', limit=list(" + (
        "resource.getrlimit(resource.RLIMIT_NOFILE)))"
    )
    process = stand_in(start=start)
    soft, hard = process.wait_for("files")["limit"]
    assert soft == hard


def test_a_reader_of_the_log_that_leaves_does_not_stop_it(stand_in: Any, tmp_path: Path) -> None:
    mark = tmp_path / "stopped"
    process = stand_in(stop=f"open({str(mark)!r}, 'w').close()")
    process.wait_for(UP)
    process.stderr.close()
    process.send(signal.SIGTERM)
    assert process.popen.wait(20) == -signal.SIGTERM
    assert mark.exists()
