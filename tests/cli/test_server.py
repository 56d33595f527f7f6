"""The command line as a whole, beside the real etcd; and one real member."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.binaries import Binaries
from support.member import Member, MemberFactory
from support.wait import wait_for

from kvorum.cli import process, server, start
from kvorum.config.server import flags
from kvorum.version import ETCD_VERSION, VERSION

BARE = {"PATH": os.environ.get("PATH", os.defpath)}


def run(program: Path, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
        env={**BARE, **env},
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command line without what it does to the process around it."""
    monkeypatch.setattr(process, "take_default_signals", lambda: None)
    monkeypatch.setattr(start, "configure_log", lambda config: None)
    for variable in [name for name in os.environ if name.startswith(("ETCD_", "GOFAIL_"))]:
        monkeypatch.delenv(variable)
    return


def test_version(kvorum: Path, tmp_path: Path) -> None:
    done = run(kvorum, "--version", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"etcd Version: {ETCD_VERSION}"
    assert [line.partition(":")[0] for line in lines[1:4]] == [
        "Git SHA",
        "Go Version",
        "Go OS/Arch",
    ]
    assert f"Kvorum Version: {VERSION}" in lines


def test_version_imports_next_to_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from kvorum.cli.server import main; main(['--version']); "
        "print([name for name in sys.modules if name.startswith(('kvorum.', 'asyncio'))])"
    )
    done = run(Path(sys.executable), "-c", code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == (
        "['kvorum.compiled', 'kvorum.version', 'kvorum.cli', 'kvorum.cli.server', "
        "'kvorum.buildinfo']"
    )


def test_version_beside_other_flags(in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert server.main(["--name=a", "--version=true"]) == 0
    assert capsys.readouterr().out.startswith("etcd Version: ")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(in_process: None, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert server.main([flag]) == 0
    said = capsys.readouterr().out
    assert "\nUnsafe feature:\n" in said
    assert all(f"\n  --{name} '" in said for name in flags())
    texts = [line for line in said.splitlines() if not line.startswith("  --")]
    assert max(map(len, texts)) <= 100


SAME_IN_ETCD = [
    ("--nope", 2),
    ("--name", 2),
    ("---name", 2),
    ("--=x", 2),
    ("--heartbeat-interval=abc", 2),
    ("--heartbeat-interval=-1", 2),
    ("--pre-vote=maybe", 2),
    ("--quota-backend-bytes=1e9", 2),
    ("--grpc-keepalive-timeout=5", 2),
    ("--listen-client-urls=foo", 2),
    ("--listen-client-urls=http://127.0.0.1:1/x", 2),
    ("--cors=foo", 2),
    ("--initial-cluster-state=old", 2),
    ("--log-level=loud", 2),
    ("--version=maybe", 2),
    ("extra", 1),
    ("-", 1),
    ("--pre-vote false", 1),
    ("--listen-client-urls=http://a.example:1 --advertise-client-urls=http://127.0.0.1:1", 1),
    ("--listen-client-urls=http://127.0.0.1:1", 1),
    ("--heartbeat-interval=500", 1),
    ("--heartbeat-interval=0x0", 1),
    ("--election-timeout=60000", 1),
    ("--auto-compaction-mode=x", 1),
    ("--initial-cluster=a=http://b:1 --discovery-srv=x", 1),
    ("--logger=capnslog", 1),
    ("--log-outputs=default,stderr", 1),
    ("--enable-log-rotation", 1),
    ("--initial-cluster=a=http://127.0.0.1:2380", 1),
    ("--config-file=/none", 1),
]


@pytest.mark.parametrize(("args", "code"), SAME_IN_ETCD)
def test_exit_code_is_etcd_s(
    in_process: None,
    reference: Binaries,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    args: str,
    code: int,
) -> None:
    assert run(reference.etcd, *args.split(), cwd=tmp_path).returncode == code
    monkeypatch.chdir(tmp_path)
    if args == "--initial-cluster=a=http://127.0.0.1:2380":
        assert refused_at_start(args.split()) == code
    else:
        assert server.main(args.split()) == code
    said = capfd.readouterr().err
    assert said.endswith("\n")
    if code == 2:
        assert "See kvorum --help" in said
    else:
        last = json.loads(said.splitlines()[-1])
        assert last["level"] in ("warn", "fatal")
        assert last["error"]


def refused_at_start(args: list[str]) -> int:
    """For what the member itself refuses: a process of its own, since it prepares for serving."""
    command = [sys.executable, "-m", "kvorum.cli.server", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=BARE)
    sys.stderr.write(done.stderr)
    sys.stderr.flush()
    return done.returncode


def test_a_wrong_variable(
    in_process: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_MAX_WALS", "many")
    assert server.main([]) == 1
    assert 'invalid value \\"many\\" for ETCD_MAX_WALS' in capfd.readouterr().err


@pytest.mark.parametrize("variable", ["GOFAIL_FAILPOINTS", "GOFAIL_HTTP"])
def test_wrong_failpoints(
    in_process: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "nonsense")
    assert server.main([]) == 1
    assert "failpoints: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "feature"),
    [
        ("--cert-file=a --key-file=b", "TLS for clients"),
        ("--auto-tls", "TLS for clients"),
        ("--client-cert-auth", "TLS for clients"),
        ("--peer-auto-tls", "TLS between members"),
        ("--peer-client-cert-auth", "TLS between members"),
        (
            "--discovery-endpoints=https://a:1 --discovery-token=t",
            "TLS to the discovery service",
        ),
        ("--enable-distributed-tracing", "distributed tracing"),
        ("--auth-token=jwt,sign-method=HS256", "JWT tokens"),
        ("--memory-mlock", "locked memory"),
        ("--bootstrap-defrag-threshold-megabytes=1", "a defragment at start-up"),
    ],
)
def test_refuses_what_it_cannot_honour(
    in_process: None, capfd: pytest.CaptureFixture[str], args: str, feature: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        server.main(args.split())
    assert ended.value.code == 1
    last = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert last["level"] == "fatal"
    assert last["error"].startswith(f"{feature} (")
    assert last["error"].endswith("is not supported by this version of Kvorum")


@pytest.mark.parametrize("subcommand", ["gateway", "grpc-proxy"])
def test_subcommands_are_refused(
    in_process: None, capsys: pytest.CaptureFixture[str], subcommand: str
) -> None:
    assert server.main([subcommand, "start"]) == 1
    assert f"subcommand {subcommand} is not supported" in capsys.readouterr().err


def test_refuses_to_run_without_assertions(tmp_path: Path) -> None:
    done = run(Path(sys.executable), "-O", "-m", "kvorum.cli.server", cwd=tmp_path)
    assert done.returncode == 1
    assert "will not run under python -O" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "msg"),
    [
        ("proxy", "v2 http proxy data in the data directory"),
        (None, "failed to list data directory"),
    ],
)
def test_a_data_directory_of_something_else(
    in_process: None,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str | None,
    msg: str,
) -> None:
    place = tmp_path / "d"
    if name:
        (place / name).mkdir(parents=True)
    else:
        place.write_text("a file")
    with pytest.raises(SystemExit) as ended:
        server.main([f"--data-dir={place}"])
    assert ended.value.code == 1
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["msg"] == msg


def test_log_goes_where_it_is_asked_to(kvorum: Path, tmp_path: Path) -> None:
    flags_given = ("--log-outputs=k.log", "--log-format=console", "--memory-mlock")
    done = run(kvorum, *flags_given, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    lines = (tmp_path / "k.log").read_text().splitlines()
    assert lines[0].split("\t")[1] == "info"
    assert lines[-1].split("\t")[1] == "fatal"


def test_log_that_cannot_be_opened(kvorum: Path, tmp_path: Path) -> None:
    done = run(kvorum, "--log-outputs=none/k.log", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot open log output" in json.loads(done.stderr.splitlines()[-1])["error"]


def messages(member: Member) -> list[str]:
    return [entry["msg"] for entry in member.log_entries()]


class TestMember:
    """A real member, driven by nothing but its command line, its signals and its log."""

    def test_lives_stops_and_lives_again(self, kvorum: Path, members: MemberFactory) -> None:
        member = members(kvorum).start()
        assert member.stop() == -signal.SIGTERM
        said = messages(member)
        for wanted in (
            "Running: ",
            "Initialize and start etcd server",
            "starting an etcd server",
            "ready to serve client requests",
            "serving client traffic insecurely",
            "published local member to cluster through raft",
            "received signal; shutting down",
        ):
            assert wanted in said
        assert {entry["level"] for entry in member.log_entries()} <= {"info", "warn"}
        started = self.started(member)
        assert (started["name"], started["member-initialized"]) == ("m", False)
        member.clear_log()
        member.start()
        assert "server has already been initialized" in messages(member)
        assert self.started(member)["member-initialized"] is True
        assert member.stop() == -signal.SIGTERM

    def started(self, member: Member) -> dict[str, Any]:
        return next(
            entry for entry in member.log_entries() if entry["msg"] == "starting an etcd server"
        )

    def test_survives_being_paused(self, kvorum: Path, members: MemberFactory) -> None:
        member = members(kvorum).start()
        assert member.process is not None
        member.process.send_signal(signal.SIGSTOP)
        assert member.http("/health", timeout=0.2) == (0, b"")
        member.process.send_signal(signal.SIGCONT)
        member.wait_ready()
        assert member.stop() == -signal.SIGTERM

    def test_settings_from_a_file(
        self, kvorum: Path, members: MemberFactory, tmp_path: Path
    ) -> None:
        member = members(kvorum)
        client, peer = f"http://{member.endpoint}", f"http://127.0.0.1:{member.peer_port}"
        path = tmp_path / "k.yaml"
        path.write_text(
            f"name: from-file\ndata-dir: {tmp_path}/d\nlisten-client-urls: {client}\n"
            f"advertise-client-urls: {client}\nlisten-peer-urls: {peer}\n"
            f"initial-advertise-peer-urls: {peer}\ninitial-cluster: from-file={peer}\n"
        )
        member.env["ETCD_CONFIG_FILE"] = str(path)
        member.start()
        assert self.started(member)["name"] == "from-file"
        member.stop()

    def test_a_port_that_is_taken(self, kvorum: Path, members: MemberFactory) -> None:
        member = members(kvorum)
        with socket.create_server(("127.0.0.1", member.client_port)):
            member.spawn()
            assert member.wait_exit() == 1
        *_, last = member.log_entries()
        assert last["level"] == "fatal"
        assert "Address already in use" in last["error"]

    def test_a_panic_in_the_log_thread(self, kvorum: Path, members: MemberFactory) -> None:
        member = members(kvorum).start()
        member.stop()
        member.env["GOFAIL_FAILPOINTS"] = "walBeforeSync=panic"
        member.spawn()
        assert member.wait_exit() == 2
        assert "panic: failpoint panic: {}" in member.log_text()
        member.env.clear()
        member.start()
        member.stop()

    def test_scrape_has_no_family_missing(self, kvorum: Path, members: MemberFactory) -> None:
        member = members(kvorum).start()
        status, body = member.http("/metrics")
        assert status == 200
        text = body.decode()
        assert 'etcd_cluster_version{cluster_version="3.7"} 1\n' in text
        assert f'etcd_server_version{{server_version="{ETCD_VERSION}"}} 1\n' in text
        wait_for(lambda: b"etcd_server_has_leader 1\n" in member.http("/metrics")[1], "leader")
        status, body = member.http("/readyz?verbose")
        assert (status, body.count(b"[+]")) == (200, 4)
        member.stop()
