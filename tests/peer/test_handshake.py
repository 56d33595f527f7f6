"""What a member tells of itself, what is refused, and with which words: etcd's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from peerlab import CLUSTER, Node, RemovedMember, WrongMember, nodes
from peersite import raw_server, run, until

from kvorum.h2 import HttpRequest, HttpResponse
from kvorum.peer import handshake
from kvorum.peer.handshake import Identity, check_compatibility, parse_id, supports_streams
from kvorum.peer.http_client import HttpReply
from kvorum.peer.rafthttp import MAX_REMOTES
from kvorum.raft import codec
from kvorum.raft.types import Message, MsgType

US = Identity(0xA1, CLUSTER, ("http://h:1", "http://h:2"), version="3.7.1")
THEM = {
    "X-Server-From": "b2",
    "X-Server-Version": "3.7.1",
    "X-Min-Cluster-Version": "3.0.0",
    "X-Etcd-Cluster-ID": "c1c1",
}


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


# --- headers


def test_what_we_tell() -> None:
    assert US.request_headers() == {
        "X-Server-From": "a1",
        "X-Server-Version": "3.7.1",
        "X-Min-Cluster-Version": "3.0.0",
        "X-Etcd-Cluster-ID": "c1c1",
        "X-PeerURLs": "http://h:1,http://h:2",
    }
    assert US.stream_headers(0xB2)["X-Raft-To"] == "b2"


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({}, None),
        ({"X-Server-Version": "3.7.0-rc.0"}, None),
        ({"X-Server-Version": "3.0.0"}, None),
        ({"X-Server-Version": "4.2.0"}, None),
        ({"X-Min-Cluster-Version": "3.7.9"}, None),
        ({"X-Server-Version": "2.3.8"}, "incompatible version"),
        ({"X-Server-Version": ""}, "incompatible version"),
        ({"X-Server-Version": "junk"}, "incompatible version"),
        ({"X-Min-Cluster-Version": "3.8.0"}, "incompatible version"),
        ({"X-Min-Cluster-Version": "x"}, "incompatible version"),
        ({"X-Min-Cluster-Version": ""}, None),
        ({"X-Etcd-Cluster-ID": "c1c2"}, "cluster ID mismatch"),
        ({"X-Etcd-Cluster-ID": "0c1c1"}, "cluster ID mismatch"),
        ({"X-Etcd-Cluster-ID": "C1C1"}, "cluster ID mismatch"),
        ({"X-Etcd-Cluster-ID": ""}, "cluster ID mismatch"),
        ({"X-Etcd-Cluster-ID": "1", "X-Server-Version": "2.3.0"}, "incompatible version"),
    ],
)
def test_compatibility(change: dict[str, str], refusal: str | None) -> None:
    found = check_compatibility(US, lower(THEM | change))
    assert (found and found.text) == refusal


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("", False),
        ("2.0.3", False),
        ("junk", False),
        ("2.1.0", True),
        ("2.3.8", True),
        ("2.4.0", False),
        ("3.0.0", True),
        ("3.7.1", True),
        ("3.9.0", True),
        ("4.0.0", True),
    ],
)
def test_releases_with_streams(version: str, supported: bool) -> None:
    assert supports_streams(US, {"x-server-version": version}) is supported


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("a1", 0xA1),
        ("A1", 0xA1),
        ("00a1", 0xA1),
        ("ffffffffffffffff", (1 << 64) - 1),
        ("10000000000000000", None),
        ("", None),
        ("0x1", None),
        ("-1", None),
        ("1_0", None),
        ("g", None),
        ("1" * 100, None),
    ],
)
def test_ids(text: str, member: int | None) -> None:
    assert parse_id(text) == member


# --- the peer port, in the order of the checks


async def answered(
    node: Node, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> HttpResponse:
    named = [(name.lower(), value) for name, value in (headers or {}).items()]
    request = HttpRequest(method, path, "", named, body, "1.1", peer="127.0.0.1:5")
    answer = node.service.handle(request)
    return answer if isinstance(answer, HttpResponse) else await cast(Awaitable[Any], answer)


def at_node(folder: Path, story: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
    async def work() -> None:
        node = Node(0xA1, folder)
        node.transport.add_peer(0xB2, ["http://127.0.0.1:1"])
        await story(node)
        await node.close()

    run(work())


STREAM = "/raft/stream/message/b2"
BEAT = codec.encode_message(Message(MsgType.HEARTBEAT, 0xA1, 0xB2, 1))
TO = {"X-Raft-To": "a1"}
OLD = {"X-Server-Version": "2.3.0"}
ALIEN = {"X-Etcd-Cluster-ID": "9"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "text"),
    [
        ("GET", "/raft", THEM, b"", 405, "Method Not Allowed"),
        ("POST", "/raft", {}, BEAT, 412, "incompatible version"),
        ("POST", "/raft", THEM | OLD, BEAT, 412, "incompatible version"),
        ("POST", "/raft", THEM | ALIEN, BEAT, 412, "cluster ID mismatch"),
        ("POST", "/raft", THEM, b"\xff", 400, "error unmarshalling raft message"),
        ("POST", "/raft", THEM, b"\x08\x07", 400, "wrong raft message type"),
        ("POST", "/raft", THEM, BEAT, 204, None),
        ("POST", STREAM, THEM | TO, b"", 405, "Method Not Allowed"),
        ("GET", STREAM, THEM | TO | OLD, b"", 412, "incompatible version"),
        ("GET", STREAM, THEM | TO | ALIEN, b"", 412, "cluster ID mismatch"),
        ("GET", "/raft/stream/b2", THEM | TO, b"", 404, "invalid path"),
        ("GET", "/raft/stream/msgappv2/b2", THEM | TO, b"", 404, "invalid path"),
        ("GET", "/raft/stream/message/b2/", THEM | TO, b"", 404, "invalid path"),
        ("GET", "/raft/stream/message/xyz", THEM | TO, b"", 404, "invalid from"),
        ("GET", "/raft/stream/message/", THEM | TO, b"", 404, "invalid from"),
        ("GET", "/raft/stream/message/dead", THEM | TO, b"", 410, "removed member"),
        ("GET", "/raft/stream/msgapp/dead", THEM, b"", 410, "removed member"),
        ("GET", "/raft/stream/message/c3", THEM | TO, b"", 404, "error sender not found"),
        ("GET", STREAM, THEM, b"", 412, "to field mismatch"),
        ("GET", STREAM, THEM | {"X-Raft-To": "0a1"}, b"", 412, "to field mismatch"),
        ("GET", STREAM, THEM | TO, b"", 200, None),
        ("GET", "/raft/stream/msgapp/b2", THEM | TO, b"", 200, None),
        ("PUT", "/raft/snapshot", THEM, b"", 405, "Method Not Allowed"),
        ("POST", "/raft/snapshot", THEM | OLD, b"", 412, "incompatible version"),
        ("POST", "/raft/snapshot", THEM | ALIEN, b"", 412, "cluster ID mismatch"),
        (
            "POST",
            "/raft/snapshot",
            THEM,
            b"\0\0",
            400,
            "failed to decode raft message (unexpected EOF)",
        ),
        ("POST", "/raft/snapshot", THEM, bytes(7) + b"\2\x08\x08", 400, "wrong raft message type"),
        ("GET", "/raft/", {}, b"", 404, "404 page not found"),
        ("GET", "/", {}, b"", 404, "404 page not found"),
    ],
)
def test_answers_of_the_peer_port(
    tmp_path: Path,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    text: str | None,
) -> None:
    async def story(node: Node) -> None:
        node.host.removed = {0xDEAD}
        response = await answered(node, method, path, headers, body)
        assert response.status == status
        if text is not None:
            assert response.body == text.encode() + b"\n"
        sent = dict(response.headers)
        if status == 405:
            allowed = "GET" if "stream" in path else "POST"
            assert sent["Allow"] == allowed
        elif path.startswith("/raft/stream/"):
            assert sent["X-Server-Version"] == "3.7.1"
        if status != 405 and text != "404 page not found":
            assert sent["X-Etcd-Cluster-ID"] == "c1c1"
        assert len(node.host.got) == (status == 204)

    at_node(tmp_path, story)


@pytest.mark.parametrize("error", [RemovedMember("gone"), WrongMember()])
def test_a_message_that_the_host_refuses_is_no_403(tmp_path: Path, error: Exception) -> None:
    """An etcd that gets 403 stops itself for good."""

    async def story(node: Node) -> None:
        node.host.refuse = type(error)
        response = await answered(node, "POST", "/raft", THEM, BEAT)
        assert (response.status, response.body) == (500, b"error processing raft message\n")
        assert ("connection", "close") in response.headers

    at_node(tmp_path, story)


def test_local_messages_from_outside_are_ignored(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        for kind in (0, 1, 10, 11, 12, 19, 20, 21, 22):
            response = await answered(node, "POST", "/raft", THEM, b"\x08%c\x10\x01" % kind)
            assert response.status == 204
        assert node.host.got == []

    at_node(tmp_path, story)


def test_probing(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        node.transport.ctx.wall = lambda: 1_700_000_000_000_000_042
        response = await answered(node, "GET", "/raft/probing")
        assert response.body == b'{"OK":true,"Now":"2023-11-14T22:13:20.000000042Z"}\n'
        clock = datetime.fromisoformat(json.loads(cast(bytes, response.body))["Now"])
        assert int(clock.timestamp()) == 1_700_000_000

    at_node(tmp_path, story)


def test_others_are_mounted_beside(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        for path in ("/members", "/members/promote/", "/members/promote/deep/"):
            node.service.mount(path, lambda request, path=path: HttpResponse(200, path.encode()))
        found = {
            path: (await answered(node, "GET", path)).body
            for path in ("/members", "/members/promote/12", "/members/promote/deep/1", "/members/")
        }
        assert list(found.values()) == [
            b"/members",
            b"/members/promote/",
            b"/members/promote/deep/",
            b"404 page not found\n",
        ]
        with pytest.raises(AssertionError, match="served already"):
            node.service.mount("/raft", lambda request: HttpResponse())

    at_node(tmp_path, story)


# --- remotes


def test_a_stranger_is_remembered_by_its_urls(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        urls = {"X-PeerURLs": "http://127.0.0.1:5,http://127.0.0.1:6"}
        stranger = THEM | TO | urls | {"X-Server-From": "c3"}
        await answered(node, "GET", "/raft/stream/message/c3", stranger)
        assert [str(url) for url in node.transport.remotes[0xC3].contact.picker.urls] == [
            "http://127.0.0.1:5",
            "http://127.0.0.1:6",
        ]
        await answered(node, "POST", "/raft", THEM | urls, BEAT)  # a peer is no remote
        own = {"X-Server-From": "a1"}
        await answered(node, "POST", "/raft", THEM | urls | own, BEAT)
        await answered(node, "POST", "/raft", THEM | urls | {"X-Server-From": "0"}, BEAT)
        await answered(node, "POST", "/raft", THEM | {"X-Server-From": "c4"}, BEAT)
        bad = {"X-Server-From": "c5", "X-PeerURLs": "nonsense"}
        await answered(node, "POST", "/raft", THEM | bad, BEAT)
        node.host.removed = {0xC6}
        await answered(node, "POST", "/raft", THEM | urls | {"X-Server-From": "c6"}, BEAT)
        assert list(node.transport.remotes) == [0xC3]
        assert "ignored malformed peer URLs" in node.log.texts()
        node.transport.add_peer(0xC3, ["http://127.0.0.1:5"])
        assert not node.transport.remotes

    at_node(tmp_path, story)


def test_remotes_are_bounded(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        for member in range(0x1000, 0x1000 + 3 * MAX_REMOTES):
            stranger = {"X-Server-From": f"{member:x}", "X-PeerURLs": "http://127.0.0.1:5"}
            await answered(node, "POST", "/raft", THEM | stranger, BEAT)
        assert len(node.transport.remotes) == MAX_REMOTES

    at_node(tmp_path, story)


# --- what a dialler makes of the answers


def refused(status: str, text: str = "", version: str = "3.7.1") -> bytes:
    body = text.encode() + b"\n"
    head = f"HTTP/1.1 {status}\r\nX-Server-Version: {version}\r\nX-Etcd-Cluster-Id: 9\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refused("404 Not Found"), "peer b2 failed to find local node a1"),
        (refused("412 Precondition Failed", "incompatible version"), "incompatible version"),
        (refused("412 Precondition Failed", "cluster ID mismatch"), "cluster ID mismatch"),
        (refused("412 Precondition Failed", "to field mismatch"), "unhandled error"),
        (refused("503 Service Unavailable"), "unhandled http status 503"),
        (b"nonsense\r\n\r\n", "malformed HTTP reply"),
        (None, "connection closed by the other side"),
    ],
)
def test_a_dialler_says_why_and_goes_on(tmp_path: Path, answer: Any, error: str) -> None:
    async def work() -> None:
        async with raw_server(*[answer] * 100) as site:
            node = Node(0xA1, tmp_path)
            node.transport.add_peer(0xB2, [site.url])
            await until(lambda: len(site.heads) >= 6)
            wrong = [str(f.get("error")) for text, f in node.log.lines if "deactivated" in text]
            assert any(error in one for one in wrong), wrong
            assert node.host.told == 0
            assert node.transport.active_since(0xB2) is None
            await node.close()

    run(work())


def test_410_tells_the_host_once_that_it_was_removed(tmp_path: Path) -> None:
    async def work() -> None:
        async with raw_server(*[refused("410 Gone", "removed member")] * 100) as site:
            node = Node(0xA1, tmp_path)
            node.transport.add_peer(0xB2, [site.url])
            await until(lambda: len(site.heads) >= 6)
            assert node.host.told == 1
            await node.close()

    run(work())


def test_a_removed_member_is_told_by_the_others(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            one.host.removed = {two.id}
            one.transport.remove_peer(two.id)
            await until(lambda: two.host.told)
            assert one.host.told == 0

    run(work())


def test_members_of_different_clusters_do_not_speak(tmp_path: Path) -> None:
    async def work() -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        async with (
            Node(1, tmp_path / "a") as one,
            Node(2, tmp_path / "b", cluster=CLUSTER + 1) as two,
        ):
            one.knows(two)
            two.knows(one)
            one.transport.send([one.message(two)])
            await until(lambda: one.host.unreachable)
            text = "request sent was ignored by remote peer due to cluster ID mismatch"
            await until(lambda: text in one.log.texts() and text in two.log.texts())
            assert "request cluster ID mismatch" in two.log.texts()
            assert "request sent was ignored due to cluster ID mismatch" in one.log.texts()
            assert two.host.got == []

    run(work())


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (403, '{"message":"cannot process message from removed member"}', 1),
        (403, '{"message":"cannot process message to mismatch member"}', 0),
        (500, "error processing raft message", 0),
    ],
)
def test_what_an_answer_to_a_message_means(
    tmp_path: Path, status: int, text: str, told: int
) -> None:
    async def work() -> None:
        node = Node(1, tmp_path)
        other = Node(2, tmp_path)
        asked: list[tuple[str, str]] = []

        async def request(method: str, url: str, path: str, **_: Any) -> HttpReply:
            asked.append((method, path))
            return HttpReply(status, {}, text.encode() + b"\n")

        node.http.request = request
        node.transport.add_remote(other.id, [other.url])
        node.transport.send([node.message(other)])
        await until(lambda: node.host.unreachable == [2])
        assert asked == [("POST", "/raft")]
        assert node.host.told == told
        failed = node.telemetry.peer.sent_failures.with_labels("2")
        assert failed.value == 1
        await other.close()
        await node.close()

    run(work())


def test_names_of_streams() -> None:
    assert [(kind.value, kind.label) for kind in handshake.StreamKind] == [
        ("message", "stream Message"),
        ("msgapp", "stream MsgApp v2"),
    ]
