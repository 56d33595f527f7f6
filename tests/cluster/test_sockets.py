"""Whole members over real sockets: three in one process, and three processes of which one is
killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.embedded import Client, config_of, story
from support.member import Member as Process
from support.member import MemberFactory
from support.ports import free_port
from support.rpc import HASH_KV, MEMBER_LIST, PUT, RANGE, STATUS
from support.rpc import Client as RawClient
from support.wait import wait_for

from kvorum.config import ServerConfig, parse_urls
from kvorum.embed import Member

ALL: dict[str, Any] = {"key": b"\0", "range_end": b"\0", "count_only": True}
QUICK = {"heartbeat_interval": 20, "election_timeout": 200}


class Trio:
    """Members a, b and c of one program, and a client of each."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        peers = {name: f"http://127.0.0.1:{free_port()}" for name in "abc"}
        whole = ",".join(f"{name}={url}" for name, url in peers.items())
        self.configs: dict[str, ServerConfig] = {
            name: config_of(
                folder / name,
                name=name,
                listen_peer_urls=parse_urls(url),
                initial_advertise_peer_urls=parse_urls(url),
                initial_cluster=whole,
                **settings,
            )
            for name, url in peers.items()
        }
        self.members: dict[str, Member] = {}
        self.clients = {name: Client(config) for name, config in self.configs.items()}

    async def start(self, *names: str) -> None:
        self.members |= {name: Member(self.configs[name]) for name in names}
        await asyncio.gather(*(self.members[name].start() for name in names))

    async def stop(self, name: str) -> None:
        await self.members.pop(name).stop()

    def leader(self) -> str:
        (name,) = (n for n, m in self.members.items() if m.server.raft.is_leader)
        return name

    async def agree(self) -> None:
        servers = [member.server for member in self.members.values()]
        while len({server.applier.index for server in servers}) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert len({(await server.store.hash_kv())[0].hash for server in servers}) == 1


@asynccontextmanager
async def trio(folder: Path, **settings: Any) -> AsyncIterator[Trio]:
    three = Trio(folder, QUICK | settings)
    try:
        await three.start(*"abc")
        yield three
    finally:
        for client in three.clients.values():
            await client.close()
        for name in list(three.members):
            await three.stop(name)


@story
async def test_three_members_in_one_program(tmp_path: Path) -> None:
    async with trio(tmp_path) as three:
        for name, client in three.clients.items():
            await client.put(name.encode(), b"v")
        for client in three.clients.values():
            assert (await client.call(RANGE, key=b"a", range_end=b"d")).count == 3
            assert len((await client.call(MEMBER_LIST)).members) == 3
        hashes = {(await c.call(HASH_KV)).hash for c in three.clients.values()}
        assert len(hashes) == 1
        leaders = {(await c.call(STATUS)).leader for c in three.clients.values()}
        assert leaders == {three.members[three.leader()].server.id}
        await three.agree()


@story
async def test_one_after_the_other_is_stopped_and_started(tmp_path: Path) -> None:
    """Whoever leads hands over; nobody is ever without an answer for long."""
    async with trio(tmp_path) as three:
        for round_, name in enumerate("abc"):
            others = [n for n in "abc" if n != name]
            await three.stop(name)
            for other in others:
                await three.clients[other].put(b"k", b"%d" % round_)
            await three.start(name)
            assert (await three.clients[name].call(RANGE, key=b"k")).kvs[0].value == b"%d" % round_
        await three.agree()


@story
async def test_a_database_goes_over_the_wire(tmp_path: Path) -> None:
    settings = {"snapshot_catchup_entries": 10, "backend_batch_interval": 0.005}
    async with trio(tmp_path, **settings) as three:
        await three.clients["a"].put(b"before")
        gone = next(name for name in "abc" if name != three.leader())
        await three.stop(gone)
        client = three.clients[three.leader()]
        for _ in range(3):
            await asyncio.gather(*(client.put(b"k%d" % i, b"x" * 1000) for i in range(200)))
        storage = three.members[three.leader()].server._snapshotter._storage
        while storage.first_index() < 300:
            await client.put(b"more")
        await three.start(gone)
        await three.agree()
        assert (await three.clients[gone].call(RANGE, key=b"k7")).kvs[0].value == b"x" * 1000
        await three.clients[gone].put(b"after")
        await three.agree()


def spawn_three(members: MemberFactory, kvorum: Path, tmp_path: Path) -> list[Process]:
    trio = [members(kvorum, name=name, folder=tmp_path / name) for name in "abc"]
    whole = ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in trio)
    for member in trio:
        member.flags = [
            f"--initial-cluster={whole}",
            "--heartbeat-interval=50",
            "--election-timeout=500",
        ]
        member.spawn()
    for member in trio:
        member.wait_ready()
    return trio


def leader_of(trio: list[Process]) -> Process:
    """Waits until those that run agree on one of them."""
    found: list[Process] = []

    def agreed() -> bool:
        statuses = {}
        for member in trio:
            if member.running:
                with RawClient(member.endpoint) as client:
                    statuses[member.name] = client.call(STATUS)
        leaders = {status.leader for status in statuses.values()}
        found[:] = [
            member
            for member in trio
            if member.name in statuses and leaders == {statuses[member.name].header.member_id}
        ]
        return bool(found)

    wait_for(agreed, "a leader")
    return found[0]


def test_leaders_are_killed(members: MemberFactory, kvorum: Path, tmp_path: Path) -> None:
    trio = spawn_three(members, kvorum, tmp_path)
    count = 0
    for _ in range(2):
        leader = leader_of(trio)
        with RawClient(leader.endpoint) as client:
            for _ in range(50):
                client.call(PUT, key=b"%d" % count)
                count += 1
        leader.kill()
        new = leader_of(trio)
        with RawClient(new.endpoint) as client:
            assert client.call(RANGE, **ALL).count == count
            client.call(PUT, key=b"%d" % count)
            count += 1
        leader.spawn()
        leader.wait_ready()
    hashes = set()
    for member in trio:
        with RawClient(member.endpoint) as client:
            assert client.call(RANGE, **ALL).count == count
            hashes.add(client.call(HASH_KV).hash)
    assert len(hashes) == 1
    for member in trio:
        errors = [e for e in member.log_entries() if e["level"] in ("error", "fatal", "panic")]
        assert errors == []
