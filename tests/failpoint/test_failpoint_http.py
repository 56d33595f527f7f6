"""The listener through which a test switches points."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from kvorum import failpoint, failpoint_http

POINT = "walBeforeSync"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = failpoint_http.serve("127.0.0.1:0")
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(port: int) -> Iterator[http.client.HTTPConnection]:
    failpoint.disable_all()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    yield connection
    connection.close()
    failpoint.disable_all()


def ask(
    client: http.client.HTTPConnection, method: str, path: str, body: str = ""
) -> tuple[int, str]:
    client.request(method, path, body.encode())
    response = client.getresponse()
    return response.status, response.read().decode()


def test_switches_on_counts_and_off(client: http.client.HTTPConnection) -> None:
    assert ask(client, "PUT", f"/{POINT}", 'return("x")') == (204, "")
    assert failpoint.hit(POINT) == "x"
    assert ask(client, "GET", f"/{POINT}") == (200, 'return("x")\n')
    assert ask(client, "GET", f"/{POINT}/count") == (200, "1")
    assert ask(client, "DELETE", f"/{POINT}") == (204, "")
    assert failpoint.hit(POINT) is None
    assert not failpoint.active


def test_lists_all(client: http.client.HTTPConnection) -> None:
    ask(client, "PUT", f"/{POINT}", "off")
    status, text = ask(client, "GET", "/")
    lines = text.splitlines()
    assert status == 200
    assert len(lines) == len(failpoint.NAMES)
    assert lines == sorted(lines)
    assert f"{POINT}=off" in lines
    assert "walAfterSync=" in lines


def test_several_at_once(client: http.client.HTTPConnection) -> None:
    body = f"{POINT}=off;walAfterSync=return"
    assert ask(client, "PUT", "/failpoints", body) == (204, "")
    assert failpoint.status("walAfterSync")[0] == "return"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("PUT", "/nope", "off", 400, "fail to set failpoint: failpoint: failpoint does not exist"),
        ("PUT", f"/{POINT}", "nonsense", 400, "fail to set failpoint: failpoint: cannot parse"),
        ("PUT", "/failpoints", "nonsense", 400, "fail to parse failpoint: bad failpoint"),
        ("PUT", f"/{POINT}", "x" * 65537, 400, "failed ReadAll in PUT"),
        ("GET", "/nope", "", 404, "failed to GET: failpoint: failpoint does not exist"),
        ("GET", "/nope/count", "", 404, "failed to GET: failpoint: failpoint does not exist"),
        ("GET", f"/{POINT}", "", 404, "failed to GET: failpoint: failpoint is disabled"),
        ("GET", f"/{POINT}/count", "", 500, "failed to GET: failpoint: failpoint is disabled"),
        ("DELETE", "/nope", "", 400, "failed to delete failpoint"),
        ("DELETE", f"/{POINT}", "", 400, "failed to delete failpoint"),
        ("POST", f"/{POINT}", "off", 405, "Method not allowed"),
    ],
)
def test_refuses(
    client: http.client.HTTPConnection, method: str, path: str, body: str, status: int, text: str
) -> None:
    answer = ask(client, method, path, body)
    assert answer[0] == status
    assert answer[1].startswith(text)
    assert not failpoint.active


def test_survives_a_client_that_leaves(client: http.client.HTTPConnection) -> None:
    with socket.create_connection((client.host, client.port)) as rude:
        rude.sendall(f"PUT /{POINT} HTTP/1.1\r\nContent-Length: 50\r\n\r\noff".encode())
    assert ask(client, "GET", "/")[0] == 200


VICTIM = """
import sys
from kvorum import failpoint, failpoint_http
server = failpoint_http.serve("127.0.0.1:0")
print(server.server_address[1], flush=True)
while True:
    if failpoint.active:
        failpoint.hit("walBeforeSync")
"""


def test_whoever_switches_a_panic_on_gets_the_answer_first() -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
        text=True,
    )
    assert victim.stdout is not None
    port = int(victim.stdout.readline())
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{POINT}", data=b"panic", method="PUT"
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            assert response.status == 204
        _, said = victim.communicate(timeout=20)
    finally:
        victim.kill()
    assert victim.returncode == 2
    assert said.startswith("panic: failpoint panic: {}")
