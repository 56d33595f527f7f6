"""What it costs to send appends to two followers:
``PYTHONPATH=tests python tests/peer/peer_bench.py``.

The leader and each follower are processes of their own; what is printed is CPU time, so that other
work on the machine matters little.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time

import uvloop
from peerlab import Node
from peersite import until

from kvorum.peer.context import Timing
from kvorum.peer.message_codec import MessageDecoder, MessageEncoder
from kvorum.peer.msgapp_codec import MsgAppDecoder, MsgAppEncoder, Runs
from kvorum.raft.types import Entry, EntryType, Message, MsgType

BATCH, SIZE, TURNS = 50, 300, 4000
LEADER, FOLLOWERS = 1 << 63, ((1 << 62) + 1, (1 << 62) + 2)


def appends(turn: int, targets: tuple[int, ...] = FOLLOWERS) -> list[Message]:
    first = turn * BATCH
    entries = [
        Entry(5, first + n, EntryType.NORMAL, os.urandom(8) + b"x" * (SIZE - 8))
        for n in range(1, BATCH + 1)
    ]
    return [
        Message(
            MsgType.APP,
            to,
            LEADER,
            5,
            log_term=5,
            index=first,
            entries=list(entries),
            commit=first,
        )
        for to in targets
    ]


def codecs() -> None:
    turns = [appends(turn) for turn in range(1000)]
    runs = Runs()
    encoders = [MsgAppEncoder(runs) for _ in FOLLOWERS]
    spent = [0.0, 0.0]
    wire: list[bytes] = []
    for messages in turns:
        for number, message in enumerate(messages):
            out: list[bytes] = []
            started = perf_counter()
            encoders[number].encode(message, out)
            data = b"".join(out)
            spent[number] += perf_counter() - started
            if number == 0:
                wire.append(data)
        runs.forget()
    entries = len(turns) * BATCH
    print(f"encode, first follower   {spent[0] / entries * 1e6:8.3f} us an entry")
    print(f"encode, second follower  {spent[1] / entries * 1e6:8.3f} us an entry")
    decoder = MsgAppDecoder(FOLLOWERS[0], LEADER)
    started = perf_counter()
    for data in wire:
        decoder.feed(data)
    print(f"decode                   {(perf_counter() - started) / entries * 1e6:8.3f} us an entry")
    short()


def short() -> None:
    message = Message(MsgType.APP_RESP, LEADER, FOLLOWERS[0], 5, index=123456)
    count = 20000
    encoder, out = MessageEncoder(), []
    started = perf_counter()
    for _ in range(count):
        encoder.encode(message, out)
    data = b"".join(out)
    print(f"encode an answer         {(perf_counter() - started) / count * 1e6:8.3f} us")
    started = perf_counter()
    MessageDecoder().feed(data)
    print(f"decode an answer         {(perf_counter() - started) / count * 1e6:8.3f} us")


def follower(number: int, pipe: Connection) -> None:
    async def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with Node(FOLLOWERS[number], Path(folder), timing=Timing()) as node:
                pipe.send(node.url)
                leader = await asyncio.to_thread(pipe.recv)
                last = asyncio.Event()
                answers: list[Message] = []

                def answer() -> None:
                    node.transport.send(answers)
                    answers.clear()

                def receive(message: Message) -> None:
                    index = message.entries[-1].index
                    if not answers:
                        asyncio.get_running_loop().call_soon(answer)
                    answers.append(
                        Message(MsgType.APP_RESP, LEADER, FOLLOWERS[number], 5, index=index)
                    )
                    if index == TURNS * BATCH:
                        last.set()

                node.host.receive = receive
                node.transport.add_peer(LEADER, [leader])
                await until(lambda: node.transport.active_since(LEADER))
                started = process_time()
                await last.wait()
                pipe.send(process_time() - started)
                await asyncio.to_thread(pipe.recv)

    uvloop.run(work())


async def lead(pipes: list[Connection]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Node(LEADER, Path(folder), timing=Timing()) as node:
            for number, pipe in enumerate(pipes):
                node.transport.add_peer(FOLLOWERS[number], [pipe.recv()])
                pipe.send(node.url)
            peers = node.transport.peers.values()
            await until(lambda: all(p._appends.attached and p._others.attached for p in peers))
            turns = [appends(turn) for turn in range(TURNS)]

            def acknowledged(count: int) -> bool:
                return len(node.host.got) >= 2 * count

            spent = started = process_time()
            sending = 0.0
            for number, messages in enumerate(turns):
                before = perf_counter()
                node.transport.send(messages)
                sending += perf_counter() - before
                await until(
                    partial(acknowledged, number - 64), 0.001
                )  # as a window of appends does
                await asyncio.sleep(0)
            await until(partial(acknowledged, TURNS), 0.001)
            spent = process_time() - started
            entries = TURNS * BATCH
            print(f"leader, send()           {sending / entries * 1e6:8.3f} us an entry, to both")
            print(f"leader, all              {spent / entries * 1e6:8.3f} us an entry, to both")
            print(f"leader, all              {spent / TURNS / 2 * 1e6:8.1f} us a message")
            for pipe in pipes:
                took = pipe.recv()
                print(f"follower, all            {took / entries * 1e6:8.3f} us an entry")
                pipe.send(None)


def main() -> None:
    codecs()
    spawn = get_context("spawn")
    pipes, processes = [], []
    for number in range(len(FOLLOWERS)):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=follower, args=(number, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    uvloop.run(lead(pipes))
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
