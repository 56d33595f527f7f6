"""Three real members, one of which holds something else: who notices, and what happens then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from corruption_kit import quiet_lines
from support.embedded import Client, Refused, config_of, story
from support.ports import free_port
from support.rpc import ALARM, COMPACT, HASH_KV, PUT, RANGE

from kvorum import errors
from kvorum.backend import FILE_NAME, Backend
from kvorum.config import ServerConfig, parse_urls
from kvorum.config.gates import parse_gates
from kvorum.embed import Member
from kvorum.pb import etcdserverpb as pb
from kvorum.pb import mvccpb
from kvorum.server.errors import CorruptMember

QUICK = {"heartbeat_interval": 20, "election_timeout": 200}
CORRUPT_TEXT = errors.Corrupt.message


class Trio:
    """Members a, b and c in one program, and a client of each."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._urls = {name: f"http://127.0.0.1:{free_port()}" for name in "abc"}
        self._folder = folder
        self._settings = QUICK | settings
        self.configs = {name: self._config(name) for name in "abc"}
        self.members: dict[str, Member] = {}
        self.clients = {name: Client(config) for name, config in self.configs.items()}

    def _config(self, name: str, **changed: Any) -> ServerConfig:
        url = parse_urls(self._urls[name])
        return config_of(
            self._folder / name,
            name=name,
            listen_peer_urls=url,
            initial_advertise_peer_urls=url,
            initial_cluster=",".join(f"{n}={u}" for n, u in self._urls.items()),
            **self._settings | changed,
        )

    def change(self, name: str, **settings: Any) -> None:
        """Other settings for the next start; the port for clients stays."""
        clients = self.configs[name].listen_client_urls
        self.configs[name] = self._config(
            name, listen_client_urls=clients, advertise_client_urls=clients, **settings
        )

    async def start(self, *names: str) -> None:
        made = {name: Member(self.configs[name]) for name in names}
        await asyncio.gather(*(member.start() for member in made.values()))
        self.members |= made

    async def stop(self, *names: str) -> None:
        for name in names:
            await self.members.pop(name).stop()

    def leader(self) -> str:
        return next(n for n, m in self.members.items() if m.server.raft.is_leader)

    def follower(self) -> str:
        return next(n for n, m in self.members.items() if not m.server.raft.is_leader)

    def id(self, name: str) -> int:
        return self.members[name].server.id

    async def agree(self) -> None:
        await until(lambda: len({m.server.applier.index for m in self.members.values()}) == 1)

    def spoil(self, name: str, key: bytes = b"k5") -> None:
        """Change a value in the file of a member that is stopped, as a bad disk would."""
        path = Path(self.configs[name].snap_dir) / FILE_NAME
        backend = Backend(path)
        for rev, record in backend.range("key", b"", None):
            pair = mvccpb.KeyValue.FromString(record)
            if pair.key == key:
                pair.value = bytes([pair.value[0] ^ 1]) + pair.value[1:]
                backend.put("key", rev, pair.SerializeToString())
        backend.close()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - nothing in here tells the tests
        await asyncio.sleep(0.002)


@asynccontextmanager
async def trio(folder: Path, **settings: Any) -> AsyncIterator[Trio]:
    three = Trio(folder, settings)
    try:
        await three.start(*"abc")
        client = three.clients["a"]
        for number in range(30):
            await client.put(b"k%d" % (number % 10), b"value %d" % number)
        await three.agree()
        yield three
    finally:
        for client in three.clients.values():
            await client.close()
        await three.stop(*list(three.members))


async def corrupt_members(client: Client) -> set[int]:
    found = await client.call(ALARM, action=pb.AlarmRequest.GET)
    assert {alarm.alarm for alarm in found.alarms} <= {pb.CORRUPT}
    return {alarm.memberID for alarm in found.alarms}


async def accused(client: Client) -> set[int]:
    while not (members := await corrupt_members(client)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return members


async def refuses(call: Awaitable[Any]) -> None:
    with pytest.raises(Refused, match=CORRUPT_TEXT):
        await call


# Before the start

GATE = parse_gates("InitialCorruptCheck=true")


@story
async def test_a_member_that_differs_does_not_start(tmp_path: Path) -> None:
    """It touches nothing, and without the check it starts as ever."""
    async with trio(tmp_path) as three:
        await three.stop("b")
        three.spoil("b")
        three.change("b", feature_gates=GATE)
        with pytest.raises(CorruptMember, match="found data inconsistency with peers"):
            await three.start("b")
        assert await corrupt_members(three.clients["a"]) == set()
        three.change("b", feature_gates=parse_gates(""))
        await three.start("b")
        assert (await three.clients["b"].call(RANGE, key=b"k0")).count == 1


@story
async def test_members_that_agree_start(tmp_path: Path) -> None:
    """One after the other, or all at once; behind the others, or after a compaction that they have
    made and it has not."""
    async with trio(tmp_path) as three:
        for name in "abc":
            three.change(name, feature_gates=GATE)
        await three.stop("b")
        await three.start("b")
        await three.stop("c")
        await three.clients["a"].put(b"missed")
        await three.clients["a"].call(COMPACT, revision=20, physical=True)
        await three.start("c")
        await three.agree()
        await three.stop(*"abc")
        await three.start(*"abc")
        await three.clients["b"].put(b"k")


# Now and then


@story
async def test_a_corrupt_follower_is_found_by_the_leader(tmp_path: Path) -> None:
    async with trio(tmp_path, corrupt_check_time=0.2) as three:
        name = three.follower()
        await three.stop(name)
        three.spoil(name)
        await three.start(name)
        client = three.clients[three.leader()]
        assert await accused(client) == {three.id(name)}
        for each in three.clients.values():
            await refuses(each.call(PUT, key=b"k", value=b"v"))
        for member in three.members.values():  # such as one that is asked for its health
            assert list(member.server.alarms.get())


@story
async def test_a_corrupt_leader_finds_the_others_different(tmp_path: Path) -> None:
    """The periodic check cannot tell who is right: the first that differs is accused."""
    async with trio(tmp_path) as three:
        await three.stop(*"abc")
        for name in "ab":
            three.spoil(name)
        for name in "abc":
            three.change(name, corrupt_check_time=0.2)
        await three.start(*"abc")
        found = await accused(three.clients["c"])
        assert len(found) == 1
        assert found <= {three.id(name) for name in "abc"} - {three.id(three.leader())}


@story
async def test_members_that_agree_are_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """While they are written to and compacted."""
    async with trio(tmp_path, corrupt_check_time=0.02) as three:
        client = three.clients["a"]
        for number in range(60):
            rev = await client.put(b"more%d" % (number % 7), b"x")
            if number % 20 == 10:
                await client.call(COMPACT, revision=rev - 5)
            await asyncio.sleep(0.003)
        assert await corrupt_members(client) == set()
    assert quiet_lines(capfd).count("finished peer corruption check") > 3


# By the hashes of compactions

COMPACT_CHECKS = {
    "feature_gates": parse_gates("CompactHashCheck=true"),
    "compact_hash_check_time": 0.1,
}


async def compacted(three: Trio) -> None:
    rev = await three.clients["a"].put(b"k5", b"newer")
    await three.agree()
    await three.clients["a"].call(COMPACT, revision=rev, physical=True)


@pytest.mark.parametrize("who", ["follower", "leader"])
@story
async def test_the_minority_is_accused(tmp_path: Path, who: str) -> None:
    """Whether it leads or not."""
    async with trio(tmp_path, **COMPACT_CHECKS) as three:
        name = three.follower()
        await three.stop(name)
        three.spoil(name)
        await three.start(name)
        await three.agree()
        if who == "leader":
            three.members[three.leader()].server.raft.transfer_leader(three.id(name))  # type: ignore[arg-type]
            await until(lambda: three.members[name].server.raft.is_leader)
        await compacted(three)
        assert await accused(three.clients[name]) == {three.id(name)}
        await refuses(three.clients["a"].call(PUT, key=b"k", value=b"v"))


@story
async def test_without_a_majority_the_cluster_is_accused(tmp_path: Path) -> None:
    async with trio(tmp_path) as three:
        await three.stop(*"abc")
        three.spoil("b", b"k5")
        three.spoil("c", b"k6")
        for name in "abc":
            three.change(name, **COMPACT_CHECKS)
        await three.start(*"abc")
        await compacted(three)
        assert await accused(three.clients["a"]) == {0}


@story
async def test_a_compaction_that_all_agree_on(tmp_path: Path) -> None:
    """And one that a member has missed, which is made up for."""
    async with trio(tmp_path, **COMPACT_CHECKS) as three:
        await compacted(three)
        server = three.members[three.leader()].server
        await until(lambda: server.corruption._checked == server.store.hashes[-1].rev)
        name = three.follower()
        await three.stop(name)
        await three.clients[three.leader()].put(b"k")
        rev = await three.clients[three.leader()].put(b"k")
        await three.clients[three.leader()].call(COMPACT, revision=rev, physical=True)
        await three.start(name)
        await until(lambda: server.corruption._checked == rev)
        assert await corrupt_members(three.clients[three.leader()]) == set()


@story
async def test_disarming_lets_them_serve_again(tmp_path: Path) -> None:
    """Once the wrong one is gone, as an operator would have it."""
    async with trio(tmp_path, **COMPACT_CHECKS) as three:
        name = three.follower()
        await three.stop(name)
        three.spoil(name)
        await three.start(name)
        await compacted(three)
        client = three.clients[three.leader()]
        (wrong,) = await accused(client)
        await three.stop(name)
        await client.call(
            ALARM, action=pb.AlarmRequest.DEACTIVATE, alarm=pb.CORRUPT, memberID=wrong
        )
        assert (await client.call(HASH_KV)).hash
        await client.put(b"k")
