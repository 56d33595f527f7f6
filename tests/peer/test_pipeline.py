"""Messages that are posted one by one: bounded, in parallel, and counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from peerlab import Node
from peersite import run, until

from kvorum.peer.http_client import HttpReply
from kvorum.peer.pipeline import QUEUE, WORKERS
from kvorum.raft.codec import decode_message
from kvorum.raft.types import Message

DROPPED = "dropped internal Raft message since sending buffer is full"


class Post:
    """In place of the client's ``request``: keeps each until it is answered."""

    def __init__(self, node: Node) -> None:
        self.waiting: list[tuple[Message, asyncio.Future[HttpReply]]] = []
        self.headers: dict[str, str] = {}
        node.http.request = self

    async def __call__(
        self, method: str, url: str, path: str, *, body: bytes, headers: dict[str, str], **_: Any
    ) -> HttpReply:
        assert (method, path) == ("POST", "/raft")
        self.headers = headers
        future: asyncio.Future[HttpReply] = asyncio.get_running_loop().create_future()
        self.waiting.append((decode_message(body), future))
        return await future

    def answer(self, status: int = 204) -> Message:
        message, future = self.waiting.pop(0)
        future.set_result(HttpReply(status, {}, b""))
        return message


def test_four_at_a_time_and_64_that_wait(tmp_path: Path) -> None:
    async def work() -> None:
        node, to = Node(1, tmp_path), Node(2, tmp_path)
        post = Post(node)
        node.transport.add_remote(2, [to.url])
        node.transport.send([node.message(to, commit=n) for n in range(QUEUE + 10)])
        await until(lambda: len(post.waiting) == WORKERS)
        drops = [f for t, f in node.log.lines if t == DROPPED]
        assert len(drops) == 10
        assert node.telemetry.peer.sent_failures.with_labels("2").value == 10
        node.transport.send([node.message(to, commit=100 + n) for n in range(WORKERS)])
        seen: list[int] = []
        while len(seen) < QUEUE + WORKERS:
            await until(lambda: post.waiting)
            seen.append(post.answer().commit)
        assert sorted(seen) == [*range(QUEUE), 100, 101, 102, 103]
        await until(lambda: not node.transport.remotes[2]._pipeline._workers)
        assert post.headers["Content-Type"] == "application/protobuf"
        assert post.headers["X-Server-From"] == "1"
        await node.close()
        await to.close()

    run(work())


def test_a_peer_is_unreachable_if_its_messages_are_dropped(tmp_path: Path) -> None:
    async def work() -> None:
        node, to = Node(1, tmp_path), Node(2, tmp_path)
        node.transport.add_peer(2, [to.url])
        Post(node)
        node.transport.send([node.message(to)] * (QUEUE + 5))
        assert node.host.unreachable == []  # not while the host is sending
        await until(lambda: node.host.unreachable)
        assert node.host.unreachable == [2]  # once a turn, not once a message
        await node.close()
        await to.close()

    run(work())


def test_answers_make_a_peer_active_and_failures_inactive(tmp_path: Path) -> None:
    async def work() -> None:
        node, to = Node(1, tmp_path), Node(2, tmp_path)
        post = Post(node)
        node.transport.add_remote(2, [to.url, "http://127.0.0.1:1"])
        contact = node.transport.remotes[2].contact
        node.transport.send([node.message(to)])
        await until(lambda: post.waiting)
        post.answer()
        await until(lambda: contact.status.active)
        assert contact.sent.value > 0
        node.transport.send([node.message(to)])
        await until(lambda: post.waiting)
        post.answer(500)
        await until(lambda: not contact.status.active)
        assert str(contact.picker.pick()) == "http://127.0.0.1:1"
        assert node.host.unreachable == [2]
        await node.close()
        await to.close()

    run(work())
