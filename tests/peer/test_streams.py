"""Transports that speak with each other: delivery, order, what breaks and what comes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peerlab import FAST, Node, RemovedMember, nodes
from peersite import run, until

from kvorum.peer import stream_writer
from kvorum.peer.message_codec import LINK_HEARTBEAT
from kvorum.peer.service import PEER_LIMITS
from kvorum.peer.stream_writer import QUEUE
from kvorum.raft.types import Entry, Message, MsgType

LOST = "lost TCP streaming connection with remote peer"


class Mute:
    """A peer that opens a stream by hand and reads only when it is told to."""

    def __init__(self, node: Node, member: int, kind: str = "message") -> None:
        self.node = node
        self.head = (
            f"GET /raft/stream/{kind}/{member:x} HTTP/1.1\r\nHost: x\r\n"
            f"X-Server-From: {member:x}\r\nX-Etcd-Cluster-ID: c1c1\r\nX-Raft-To: {node.id:x}\r\n"
            "X-Server-Version: 3.5.1\r\nX-Min-Cluster-Version: 3.0.0\r\n\r\n"
        )
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.node.port, limit=1 << 16
        )
        self.writer.write(self.head.encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")

    async def read_chunk(self) -> bytes:
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    def close(self) -> None:
        self.writer.transport.abort()


def test_messages_arrive_in_order_on_each_stream(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(3, tmp_path) as (one, two, three):
            for turn in range(50):
                one.transport.send(
                    [
                        one.append(two, turn * 2, 10, 3000),
                        one.message(two, commit=turn),
                        one.append(three, turn * 2, 10, 3000),
                        one.message(three, commit=turn),
                    ]
                )
                await asyncio.sleep(0)
            for node in (two, three):
                await until(lambda node=node: len(node.host.got) == 100)
                beats = [m.commit for m in node.host.got if m.type is MsgType.HEARTBEAT]
                appends = [m for m in node.host.got if m.type is MsgType.APP]
                assert beats == list(range(50))
                assert appends == [one.append(node, turn * 2, 10, 3000) for turn in range(50)]
            assert one.host.unreachable == []

    run(work())


@pytest.mark.plain
def test_everything_for_one_peer_is_one_write_a_stream(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            peer = one.transport.peers[two.id]
            written: list[bytes] = []
            for writer in (peer._appends, peer._others):
                answer = writer._answer
                assert answer is not None
                answer.write = written.append
            one.transport.send(
                [one.append(two, 0, 5), one.message(two), one.append(two, 1, 5), one.message(two)]
            )
            assert len(written) == 2

    run(work())


def test_appends_go_by_the_other_stream_while_theirs_is_not_there(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            one.transport.peers[two.id]._appends.stop()
            one.transport.send([one.append(two, 0, 5)])
            await until(lambda: two.host.got)
            assert two.host.got == [one.append(two, 0, 5)]

    run(work())


def test_streams_come_back_when_a_peer_does(tmp_path: Path) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as one:
            async with Node(2, tmp_path) as two:
                one.knows(two)
                two.knows(one)
                await until(lambda: one.streams_to(two) and two.streams_to(one))
            await until(lambda: one.transport.active_since(two.id) is None)
            await until(lambda: not one.streams_to(two))
            one.transport.send([one.message(two)])
            await until(lambda: one.host.unreachable)
            async with Node(2, tmp_path, port=two.port) as again:
                again.knows(one)
                await until(lambda: one.transport.active_since(two.id) and one.streams_to(two))
                one.transport.send([one.append(two, 0, 10), one.message(two)])
                await until(lambda: len(again.host.got) == 2)
            texts = one.log.texts()
            assert LOST in texts
            assert "peer became inactive (message send to peer failed)" in texts

    run(work())


def test_a_new_stream_replaces_the_old(tmp_path: Path) -> None:
    """As when a peer restarts before its old connection is seen to be dead."""

    async def work() -> None:
        async with Node(1, tmp_path) as node:
            node.transport.add_peer(2, ["http://127.0.0.1:1"])
            old, new = Mute(node, 2), Mute(node, 2)
            await old.open()
            await new.open()
            assert await old.read_chunk() == b""  # ended in order
            message = Message(MsgType.HEARTBEAT, 2, 1, 7)
            node.transport.send([message])
            assert (await new.read_chunk())[8:10] == b"\x08\x08"
            assert "closed TCP streaming connection with remote peer" in node.log.texts()
            old.close()
            new.close()

    run(work())


def test_link_heartbeats_keep_a_silent_stream(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path, timing=replace(FAST, idle=0.3, heartbeat=0.05)) as (one, two):
            since = one.transport.active_since(two.id)
            await asyncio.sleep(0.7)
            assert one.transport.active_since(two.id) == since
            assert LOST not in one.log.texts()
            assert two.host.got == []
            received = one.telemetry.peer.received_bytes.with_labels("2")
            assert received.value >= 5 * len(LINK_HEARTBEAT)

    run(work())


def test_a_stream_without_heartbeats_is_dropped(tmp_path: Path) -> None:
    async def work() -> None:
        timing = replace(FAST, idle=0.2, heartbeat=50.0)
        async with nodes(2, tmp_path, timing=timing) as (one, _):
            await until(lambda: LOST in one.log.texts())
            errors = [str(f.get("error")) for text, f in one.log.lines if text == LOST]
            assert "nothing came for 0.2s" in errors

    run(work())


def test_the_next_url_is_tried(tmp_path: Path) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as one, Node(2, tmp_path) as two:
            dead = Node(3, tmp_path)
            one.transport.add_peer(two.id, [dead.url, two.url])
            two.knows(one)
            await until(lambda: one.streams_to(two) and two.streams_to(one))
            await dead.close()

    run(work())


def test_a_peer_that_moves_is_found_at_its_new_urls(tmp_path: Path) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as one, Node(2, tmp_path) as two:
            two.knows(one)
            one.transport.add_peer(two.id, ["http://127.0.0.1:1"])
            await until(lambda: one.transport.active_since(two.id) is not None)  # theirs to us
            assert not two.streams_to(one)
            one.transport.update_peer(two.id, [two.url])
            await until(lambda: two.streams_to(one))
            one.transport.update_peer(99, ["http://127.0.0.1:1"])  # unknown: nothing to do
            assert "updated remote peer" in one.log.texts()

    run(work())


def test_dials_are_limited(tmp_path: Path) -> None:
    async def work() -> None:
        dials = 0

        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal dials
            dials += 1
            writer.close()

        server = await asyncio.start_server(cut, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        node = Node(1, tmp_path, timing=replace(FAST, redial=0.1, probe=50.0))
        node.transport.add_peer(2, [f"http://127.0.0.1:{port}"])
        await asyncio.sleep(0.55)
        assert 2 <= dials <= 12  # two streams, at once and then every 0.1 s
        await node.close()
        server.close()

    run(work())


# --- a peer that does not read


def test_a_slow_peer_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a socket takes in one turn: the queue is as full at the end as when it overflowed.
    monkeypatch.setattr(stream_writer, "BURST", 1 << 20)

    async def work() -> None:
        async with Node(1, tmp_path) as one, Node(3, tmp_path) as three:
            one.transport.add_peer(2, ["http://127.0.0.1:1"])
            one.knows(three)
            three.knows(one)
            await until(lambda: one.streams_to(three))
            slow = Mute(one, 2)
            await slow.open()
            slow.writer.transport.pause_reading()
            big = b"x" * 100_000
            count = 0
            while 2 not in one.host.unreachable:
                count += 100
                one.transport.send(
                    [Message(MsgType.HEARTBEAT, 2, 1, n, context=big) for n in range(100)]
                    + [one.message(three, commit=n) for n in range(100)]
                )
                await asyncio.sleep(0)
            await until(lambda: len(three.host.got) == count)
            assert 3 not in one.host.unreachable
            writer = one.transport.peers[2]._others
            assert len(writer._queue) == QUEUE
            links = one._server.links
            unsent = max(link.transport.get_write_buffer_size() for link in links)
            assert unsent < 5 * stream_writer.BURST
            assert one.telemetry.peer.sent_failures.with_labels("2").value > 0
            assert one.telemetry.peer.sent_failures.with_labels("3").value == 0
            drops = [
                f for t, f in one.log.lines if t.startswith("dropped internal Raft message since")
            ]
            assert drops[0]["message_type"] == "MsgHeartbeat"
            assert drops[0]["remote_peer_name"] == "stream Message"
            slow.close()
            await until(lambda: not writer.attached)
            assert writer._queue == []

    run(work())


def test_what_waited_is_sent_when_the_peer_reads_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as one:
            one.transport.add_peer(2, ["http://127.0.0.1:1"])
            slow = Mute(one, 2)
            await slow.open()
            slow.writer.transport.pause_reading()
            big = b"x" * 100_000
            for turn in range(300):
                one.transport.send([Message(MsgType.HEARTBEAT, 2, 1, turn, context=big)])
                await asyncio.sleep(0)
            assert one.transport.peers[2]._others._queue
            slow.writer.transport.resume_reading()
            taken = 0
            while taken < 300 * 100_000:
                taken += len(await slow.read_chunk())
            assert one.host.unreachable == []
            slow.close()

    run(work())


def test_a_peer_that_never_reads_again_is_cut_off(tmp_path: Path) -> None:
    async def work() -> None:
        limits = replace(PEER_LIMITS, write_stall_timeout=0.2)
        async with Node(1, tmp_path, limits=limits) as one:
            one.transport.add_peer(2, ["http://127.0.0.1:1"])
            slow = Mute(one, 2, "msgapp")
            await slow.open()
            slow.writer.transport.pause_reading()
            entries = [Entry(1, 1, data=b"x" * 30_000_000)]
            one.transport.send([Message(MsgType.APP, 2, 1, 1, log_term=1, entries=entries)])
            await until(lambda: not one.transport.peers[2]._appends.attached)
            assert LOST in one.log.texts()
            slow.close()

    run(work())


def test_a_burst_is_encoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_writer, "BURST", 1000)

    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            sent = [one.append(two, n, 600) for n in range(20)]
            one.transport.send(sent)
            assert len(one.transport.peers[two.id]._appends._queue) == 18
            await until(lambda: len(two.host.got) == 20)
            assert two.host.got == sent

    run(work())


def test_what_is_committed_already_does_not_take_the_whole_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop has the greater part of its time for others, unless the member would never catch up.
    New entries wait for their turn only, and heartbeats, on the other stream, for nothing."""
    monkeypatch.setattr(stream_writer, "BURST", 1000)

    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            appends, loop = one.transport.peers[two.id]._appends, one.transport.ctx.loop
            rests: list[float] = []
            ticks = iter(range(10_000))

            def call_later(delay: float, call: Any) -> Any:
                if call == appends._go_on:
                    rests.append(delay)
                return loop.call_later(delay, call)

            one.transport.ctx.timer = lambda: next(ticks) * 0.0005  # each burst takes half a ms
            one.transport.ctx.loop = SimpleNamespace(call_later=call_later, time=loop.time)
            old = [one.append(two, n, 1500) for n in range(5)]
            new = [one.append(two, n, 1500) for n in range(100, 103)]
            for message in (*old, *new):
                message.commit = 100
            old[3].commit = old[4].commit = 101  # by then there is one more, and one was sent
            beats = [one.message(two, context=b"x" * 1500) for _ in range(10)]
            one.transport.send([*old, *new, *beats])
            await until(lambda: len(two.host.got) == 18)
            one.transport.ctx.loop = loop
            assert [m for m in two.host.got if m.type is MsgType.APP] == [*old, *new]
            rest = stream_writer.REST * 0.0005
            assert rests == pytest.approx([0, rest, 0, rest, 0, 0, 0])  # 0: it begins far behind

    run(work())


# --- members come and go


def test_a_peer_that_is_removed_is_spoken_with_no_more(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(3, tmp_path) as (one, two, three):
            one.transport.remove_peer(two.id)
            assert one.transport.active_since(two.id) is None
            one.transport.send([one.message(two), one.message(three)])
            await until(lambda: three.host.got)
            await until(lambda: not two.streams_to(one))
            assert two.host.got == []
            one.transport.remove_peer(two.id)
            assert "skipped removing already removed peer" in one.log.texts()
            ignored = "ignored message send request; unknown remote peer target"
            assert ignored in one.log.texts()

    run(work())


def test_messages_of_members_unknown_to_raft_reach_a_remote(tmp_path: Path) -> None:
    """A member that is behind does not know who speaks to it; it must answer all the same."""

    async def work() -> None:
        (tmp_path / "b").mkdir()
        async with Node(1, tmp_path) as one, Node(2, tmp_path / "b") as two:
            one.knows(two)
            one.transport.send([one.message(two)])  # by pipeline: there is no stream
            await until(lambda: two.host.got)
            assert list(two.transport.remotes) == [one.id]
            two.transport.send([two.message(one, MsgType.HEARTBEAT_RESP)])
            await until(lambda: one.host.got)
            assert one.host.got == [two.message(one, MsgType.HEARTBEAT_RESP)]

    run(work())


def test_adding_a_peer_twice_or_oneself_does_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        node = Node(1, tmp_path)
        node.transport.add_peer(2, ["http://127.0.0.1:1"])
        peer = node.transport.peers[2]
        node.transport.add_peer(2, ["http://127.0.0.1:2"])
        node.transport.add_peer(1, ["http://127.0.0.1:3"])
        assert node.transport.peers == {2: peer}
        assert [str(url) for url in peer.contact.picker.urls] == ["http://127.0.0.1:1"]
        with pytest.raises(ValueError, match="without URLs"):
            node.transport.add_peer(3, [])
        with pytest.raises(ValueError, match="URL"):
            node.transport.add_peer(3, ["nonsense"])
        await node.close()
        node.transport.add_peer(4, ["http://127.0.0.1:1"])
        assert not node.transport.peers

    run(work())


# --- cut off


def test_pause_drops_silently_both_ways(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            one.transport.pause()
            one.transport.send([one.message(two), one.append(two, 0, 5)])
            two.transport.send([two.message(one, commit=1)])
            reply = await two.http.request(
                "POST",
                one.url,
                "/raft",
                headers=two.transport.ctx.us.request_headers(),
                body=b"\x08\x08\x10\x01\x18\x02",
                timeout=5.0,
            )
            assert reply.status == 204
            received = one.telemetry.peer.received_bytes.with_labels("2")
            await until(lambda: received.value > 20)  # it came, and went nowhere
            one.transport.resume()
            two.transport.send([two.message(one, commit=2)])
            one.transport.send([one.message(two, commit=2)])
            await until(lambda: one.host.got and two.host.got)
            assert [m.commit for m in one.host.got] == [2]
            assert [m.commit for m in two.host.got] == [2]
            assert one.host.unreachable == two.host.unreachable == []

    run(work())


def test_a_host_that_refuses_a_message_keeps_the_stream(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            two.host.refuse = RemovedMember
            one.transport.send([one.message(two)])
            await until(lambda: "failed to process Raft message" in two.log.texts())
            two.host.refuse = None
            one.transport.send([one.message(two, commit=3)])
            await until(lambda: two.host.got)
            assert LOST not in two.log.texts()

    run(work())


def test_local_messages_and_snapshots_are_not_taken_from_streams(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            others = one.transport.peers[two.id]._others
            for kind in (MsgType.HUP, MsgType.SNAP, MsgType.UNREACHABLE, MsgType.PROP):
                others.put(one.message(two, kind))
            others.flush()
            await until(lambda: two.host.got)
            assert [m.type for m in two.host.got] == [MsgType.PROP]

    run(work())


# --- closing, and what is counted


def test_close_ends_every_stream_so_that_a_listener_can_drain(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            server = one._server
            assert server is not None
            await one.transport.close()
            one.transport.send([one.message(two), one.snapshot(two)])
            await until(lambda: one.host.reports == [(two.id, False)])
            assert await server.drain(5.0)

    run(work())


def test_metrics(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(2, tmp_path) as (one, two):
            sent = one.telemetry.peer.sent_bytes.with_labels("2")
            received = two.telemetry.peer.received_bytes.with_labels("1")
            before = sent.value
            one.transport.send([one.append(two, 0, 1000)])
            await until(lambda: two.host.got)
            assert sent.value - before > 1000
            assert received.value > 1000
            active = one.telemetry.peer.active.with_labels("1", "2")
            assert active.value == 1
            trips = one.telemetry.peer.round_trip.with_labels("2")
            await until(lambda: trips.count >= 2)
            assert 0 < trips.sum < 2
            two.deaf()
            broken = one.telemetry.peer.disconnected.with_labels("1", "2")
            await until(lambda: broken.value == 1)
            assert active.value == 0

    run(work())


def test_the_prober_tells_of_a_dead_peer_and_of_a_wrong_clock(tmp_path: Path) -> None:
    async def work() -> None:
        async with Node(1, tmp_path) as one, Node(2, tmp_path) as two:
            two.transport.ctx.wall = lambda: 1_000_000_000
            one.transport.add_peer(two.id, [two.url])
            prober = one.transport.peers[two.id]._prober
            prober._report_after = 0.0
            await until(lambda: "prober found high clock drift" in one.log.texts())
            two.deaf()
            await until(lambda: "prober detected unhealthy status" in one.log.texts())
            drifts = [t for t in one.log.texts() if t == "prober found high clock drift"]
            assert len(drifts) == 1

    run(work())
