"""Other people's HTTP/2 and HTTP/1.1 programs against the server under test and a real etcd."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.binaries import Binaries, etcd_version
from support.member import Member, MemberFactory
from support.need import need
from support.rpc import DELETE_RANGE, PUT, RANGE, Client
from support.wait import wait_for

from kvorum.pb import etcdserverpb as pb

_GRPC = ["-H", "content-type: application/grpc", "-H", "te: trailers"]


class Servers(NamedTuple):
    """The reference, and the server under test."""

    old: Member
    new: Member
    newer: bool


@pytest.fixture(scope="module")
def servers(module_members: MemberFactory, reference: Binaries, kvorum: Path) -> Servers:
    members = [module_members(binary) for binary in (reference.etcd, kvorum)]
    for member in members:
        member.spawn()
    for member in members:
        member.wait_ready()
    return Servers(*members, newer=etcd_version(kvorum) > etcd_version(reference.etcd))


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    need(path is not None, f"{name} is missing (Debian package {package})")
    assert path is not None
    return path


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def framed(message: Any) -> bytes:
    body = message.SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


def request_file(folder: Path, message: Any) -> str:
    path = folder / "request.bin"
    path.write_bytes(framed(message))
    return str(path)


class Curl:
    """curl with what both servers must answer alike."""

    def __init__(self) -> None:
        self.path = tool("curl", "curl")

    def get(self, member: Member, path: str, *options: str) -> tuple[str, str]:
        """Status and content type in one line, and the body."""
        shown = "%{http_code} %{content_type}"
        url = f"http://{member.endpoint}{path}"
        text = output_of(self.path, "-s", "-w", f"\n{shown}", *options, url)
        body, _, status = text.rpartition("\n")
        return status, body


@pytest.fixture(scope="module")
def curl() -> Curl:
    return Curl()


@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
@pytest.mark.parametrize("path", ["/health", "/health?serializable=true", "/nothing/here"])
def test_curl_reads_the_same(servers: Servers, curl: Curl, path: str, version: str) -> None:
    assert curl.get(servers.new, path, version) == curl.get(servers.old, path, version)


def test_curl_reads_the_version(servers: Servers, curl: Curl) -> None:
    status, body = curl.get(servers.new, "/version")
    old_status, old_body = curl.get(servers.old, "/version")
    assert status == old_status
    added = {"storage"} if servers.newer else set()
    assert json.loads(body).keys() == json.loads(old_body).keys() | added


def test_curl_reads_metrics(servers: Servers, curl: Curl) -> None:
    status, body = curl.get(servers.new, "/metrics")
    assert status.startswith("200 text/plain; version=0.0.4")
    for name in ("etcd_server_has_leader 1", "etcd_mvcc_put_total", "process_open_fds"):
        assert f"\n{name}" in body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v3/kv/put", {"key": "Zm9v", "value": "YmFy", "prev_kv": True}),
        ("/v3/kv/range", {"key": "Zm9v"}),
        ("/v3/kv/range", {"key": "AA==", "range_end": "AA==", "limit": "1"}),
        ("/v3/kv/range", {"key": ""}),
        ("/v3/kv/range", {"key": "Zm9v", "revision": 1000000}),
        ("/v3/kv/deleterange", {"key": "Zm9v", "prev_kv": True}),
        ("/v3/kv/txn", {"success": [{"request_range": {"key": "Zm9v"}}]}),
        ("/v3/lease/timetolive", {"ID": "77"}),
    ],
)
@pytest.mark.xfail(reason="to come: the JSON gateway")
def test_curl_uses_the_json_gateway(
    servers: Servers, curl: Curl, path: str, body: dict[str, Any]
) -> None:
    def ask(member: Member) -> tuple[str, Any]:
        status, text = curl.get(member, path, "-d", json.dumps(body))
        answer = json.loads(text)
        answer.pop("error", None)  # told again in "message", and gone since 3.6
        for name in ("cluster_id", "member_id", "raft_term"):
            answer.get("header", {}).pop(name, None)
        return status, answer

    old, new = ask(servers.old), ask(servers.new)
    assert _drop_details(new) == _drop_details(old)


def _drop_details(reply: tuple[str, Any]) -> tuple[str, Any]:
    """Newer gateways add an empty list of details to errors."""
    reply[1].pop("details", None)
    return reply


def test_curl_speaks_grpc_with_prior_knowledge(
    servers: Servers, curl: Curl, tmp_path: Path
) -> None:
    request = request_file(tmp_path, pb.RangeRequest(key=b"some key"))
    bad = tmp_path / "bad.bin"
    bad.write_bytes(framed(pb.RangeRequest()))
    for name in (request, str(bad)):
        old, new = (_grpc_headers(curl, member, name) for member in servers[:2])
        assert new == old


def _grpc_headers(curl: Curl, member: Member, request: str) -> dict[str, str]:
    """Headers and trailers of a Range call, without what depends on time or library."""
    url = f"http://{member.endpoint}/etcdserverpb.KV/Range"
    text = output_of(
        curl.path,
        "-s",
        "--http2-prior-knowledge",
        *_GRPC,
        "--data-binary",
        f"@{request}",
        "-o",
        "/dev/null",
        "-D",
        "-",
        url,
    )
    lines = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    headers = {name.strip().lower(): value.strip() for name, value in lines}
    assert text.startswith("HTTP/2 200")
    return {name: headers.get(name, "") for name in ("content-type", "grpc-status", "grpc-message")}


def test_nghttp_completes_a_call(servers: Servers, tmp_path: Path) -> None:
    nghttp = tool("nghttp", "nghttp2-client")
    request = request_file(tmp_path, pb.PutRequest(key=b"nghttp", value=b"1"))
    url = f"http://{servers.new.endpoint}/etcdserverpb.KV/Put"
    text = output_of(nghttp, "-nv", *_GRPC, "-d", request, url)
    assert "grpc-status: 0" in text
    assert "SETTINGS frame" in text
    assert "recv GOAWAY" not in text
    assert "recv RST_STREAM" not in text
    with Client(servers.new.endpoint) as client:
        assert client.call(RANGE, key=b"nghttp").kvs[0].value == b"1"


@pytest.mark.parametrize(("clients", "streams"), [(1, 1), (4, 25), (50, 2)])
def test_h2load_loses_nothing(servers: Servers, tmp_path: Path, clients: int, streams: int) -> None:
    """Every request of a load is answered with success and counted exactly once."""
    h2load = tool("h2load", "nghttp2-client")
    requests = 200 if clients == 1 else 2000
    key = b"h2load/%d" % clients
    request = request_file(tmp_path, pb.PutRequest(key=key, value=b"x" * 256))
    url = f"http://{servers.new.endpoint}/etcdserverpb.KV/Put"
    counts = ["-n", str(requests), "-c", str(clients), "-m", str(streams)]
    text = output_of(h2load, *counts, *_GRPC, "-d", request, url)
    summary = re.search(r"requests: .*", text)
    assert summary is not None
    assert f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" in summary[0]
    with Client(servers.new.endpoint) as client:
        assert client.call(RANGE, key=key).kvs[0].version == requests


def test_a_snapshot_restores_into_a_real_etcd(
    servers: Servers, reference: Binaries, members: MemberFactory, tmp_path: Path
) -> None:
    """snapshot save from the server under test, etcdutl's status and restore, a real etcd."""
    with Client(servers.new.endpoint) as client:
        for number in range(300):
            client.call(PUT, key=b"snap/%03d" % number, value=b"v" * number)
        live = client.call(RANGE, key=b"\0", range_end=b"\0")
    saved = str(tmp_path / "saved.db")
    ctl = [str(reference.etcdctl), f"--endpoints={servers.new.endpoint}"]
    output_of(*ctl, "snapshot", "save", saved)
    status = json.loads(output_of(str(reference.etcdutl), "snapshot", "status", saved, "-w=json"))
    assert status["revision"] == live.header.revision
    restored = members(reference.etcd)
    peer = f"http://127.0.0.1:{restored.peer_port}"
    cluster = [f"--initial-cluster=m={peer}", f"--initial-advertise-peer-urls={peer}", "--name=m"]
    output_of(
        str(reference.etcdutl),
        "snapshot",
        "restore",
        saved,
        f"--data-dir={restored.data_dir}",
        *cluster,
    )
    restored.start()
    with Client(restored.endpoint) as client:
        again = client.call(RANGE, key=b"\0", range_end=b"\0")
    assert list(again.kvs) == list(live.kvs)
    assert again.header.revision == live.header.revision


def test_make_mirror_copies_into_a_real_etcd(servers: Servers, reference: Binaries) -> None:
    with Client(servers.new.endpoint) as source, Client(servers.old.endpoint) as target:
        source.call(PUT, key=b"mirror/before", value=b"1")
        command = [reference.etcdctl, f"--endpoints={servers.new.endpoint}", "make-mirror"]
        mirror = subprocess.Popen(
            [*command, "--prefix=mirror/", servers.old.endpoint],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _wait_keys(target, {b"mirror/before"})
            source.call(PUT, key=b"mirror/after", value=b"2")
            _wait_keys(target, {b"mirror/before", b"mirror/after"})
            source.call(DELETE_RANGE, key=b"mirror/before")
            _wait_keys(target, {b"mirror/after"})
        finally:
            mirror.terminate()
            mirror.communicate(timeout=30)


def _wait_keys(client: Client, keys: set[bytes]) -> None:
    def arrived() -> bool:
        found = client.call(RANGE, key=b"mirror/", range_end=b"mirror0")
        return {kv.key for kv in found.kvs} == keys

    wait_for(arrived, f"exactly {keys} in the mirror")


@pytest.mark.timeout(400)
def test_check_perf_passes_as_on_etcd(
    servers: Servers, reference: Binaries, pytestconfig: pytest.Config
) -> None:
    """One minute of etcdctl's own small load, on each server."""
    if not pytestconfig.getoption("interop_long"):
        pytest.skip("takes two minutes: --interop-long")
    results = [_perf(reference.etcdctl, member) for member in servers[:2]]
    assert results[1] == results[0]


def _perf(etcdctl: Path, member: Member) -> list[str]:
    done = subprocess.run(
        [str(etcdctl), f"--endpoints={member.endpoint}", "check", "perf", "--load=s"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    print(done.stdout.replace("\r", "\n")[-600:])
    return re.findall(r"^(PASS|FAIL)", done.stdout.replace("\r", "\n"), re.MULTILINE)
