"""Members that gather at a discovery service: a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from boot_kit import config_of
from peer_fakes import FakeHttp, FakeNames
from support.binaries import Binaries
from support.member import QUICK
from support.member import Member as Process
from support.ports import free_port

from kvorum.config import ServerConfig, parse_urls
from kvorum.h2 import Channel, RpcError
from kvorum.membership import cluster_id, member_id
from kvorum.pb import etcdserverpb as pb
from kvorum.server.bootstrap.booted import Identity
from kvorum.server.bootstrap.discovery_v3 import join_discovery
from kvorum.server.bootstrap.new_cluster import new_cluster
from kvorum.server.errors import BadInitialCluster, DiscoveryFailed
from kvorum.types import MemberID

STORY_SECONDS = 30.0


@pytest.fixture(scope="module")
def service(reference: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(reference.etcd, tmp_path_factory.mktemp("discovery"))
    process.start()
    yield process
    process.kill()


class Keys:
    """What an operator does with the service."""

    def __init__(self, service: Process) -> None:
        self._channel = Channel("127.0.0.1", service.client_port)

    async def put(self, key: str, value: str) -> None:
        request = pb.PutRequest(key=f"/_etcd/registry/{key}".encode(), value=value.encode())
        await self._channel.unary("/etcdserverpb.KV/Put", request.SerializeToString())

    async def read(self, key: str) -> dict[str, str]:
        prefix = f"/_etcd/registry/{key}".encode()
        request = pb.RangeRequest(key=prefix, range_end=prefix + b"\xff")
        body = await self._channel.unary("/etcdserverpb.KV/Range", request.SerializeToString())
        found = pb.RangeResponse.FromString(body).kvs
        return {kv.key[len(prefix) :].decode(): kv.value.decode() for kv in found}

    async def call(self, method: str, request: Any) -> None:
        await self._channel.unary(f"/etcdserverpb.{method}", request.SerializeToString())

    async def __aenter__(self) -> Keys:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()


def config(
    folder: Path, service: Process, token: str, number: int = 1, **more: Any
) -> ServerConfig:
    settings: dict[str, Any] = {
        "name": f"m{number}",
        "discovery_token": token,
        "discovery_endpoints": (service.endpoint,),
        "initial_advertise_peer_urls": parse_urls(f"http://10.0.0.{number}:1"),
    }
    return config_of(folder / str(number), **(settings | more))


async def begun(config: ServerConfig) -> Identity:
    async with asyncio.timeout(STORY_SECONDS):
        return await new_cluster(config, FakeHttp(), FakeNames())


async def failure(config: ServerConfig) -> str:
    with pytest.raises(DiscoveryFailed) as caught:
        await begun(config)
    return str(caught.value)


def test_three_members_find_each_other(tmp_path: Path, service: Process) -> None:
    """Each waits for the others, and all come to the same cluster; the token counts for the ids. A
    fourth is too late. One whose first start was cut off registers again, and is let in."""

    async def story() -> None:
        async with Keys(service) as keys:
            await keys.put("three/_config/size", "3")
            first = asyncio.ensure_future(begun(config(tmp_path, service, "three", 1)))
            while not await keys.read("three/members"):
                assert not first.done()
            second = asyncio.ensure_future(begun(config(tmp_path, service, "three", 2)))
            while len(await keys.read("three/members")) < 2:
                assert not second.done()
            third = await begun(config(tmp_path, service, "three", 3))
            all_three = [await first, await second, third]
            ids = [member_id([f"http://10.0.0.{i}:1"], "three") for i in (1, 2, 3)]
            assert [who.member for who in all_three] == ids
            assert {who.cluster for who in all_three} == {cluster_id(ids)}
            assert [member.id for member in third.first] == sorted(ids)
            assert all(who.first == third.first for who in all_three)
            assert await keys.read("three/members/") == {
                f"{identity:x}": f"m{i}=http://10.0.0.{i}:1" for i, identity in enumerate(ids, 1)
            }
            assert await failure(config(tmp_path, service, "three", 4)) == (
                "failed to join discovery cluster (discovery: cluster is full)"
            )
            assert await begun(config(tmp_path, service, "three", 2)) == all_three[1]

    uvloop.run(story())


@pytest.mark.parametrize(
    ("size", "why"),
    [("", "discovery: size key not found"), ("none", "discovery: size key is bad")],
)
def test_a_token_that_is_none(tmp_path: Path, service: Process, size: str, why: str) -> None:
    async def story() -> None:
        async with Keys(service) as keys:
            if size:
                await keys.put("bad/_config/size", size)
            text = await failure(config(tmp_path, service, "bad" if size else "unknown"))
            assert text == f"failed to join discovery cluster ({why})"

    uvloop.run(story())


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("m2=10.0.0.2:1", "discovery: invalid peer URL"),
        ("m2=http://10.0.0.1:1", "has duplicate url"),
        ("m1=http://10.0.0.2:1", 'several members of the name "m1"'),
    ],
)
def test_what_others_registered_makes_no_sense(
    tmp_path: Path, service: Process, other: str, why: str
) -> None:
    async def story() -> None:
        async with Keys(service) as keys:
            token = f"odd{other.encode().hex()}"
            await keys.put(f"{token}/_config/size", "2")
            await keys.put(f"{token}/members/2", other)
            with pytest.raises((DiscoveryFailed, BadInitialCluster), match=why):
                await begun(config(tmp_path, service, token))

    asyncio.run(story())


def test_a_member_that_registers_nonsense_is_passed_over(tmp_path: Path, service: Process) -> None:
    async def story() -> None:
        async with Keys(service) as keys:
            await keys.put("pass/_config/size", "2")
            await keys.put("pass/members/2", "nonsense")
            waiting = asyncio.ensure_future(begun(config(tmp_path, service, "pass")))
            while len(await keys.read("pass/members")) < 2:
                assert not waiting.done()
            await keys.put("pass/members/3", "more nonsense")
            await keys.put("pass/members/4", "m4=http://10.0.0.4:1")
            who = await waiting
            assert [member.name for member in sorted(who.first, key=lambda m: m.name)] == [
                "m1",
                "m4",
            ]

    asyncio.run(story())


def test_the_first_endpoint_is_dead(tmp_path: Path, service: Process) -> None:
    async def story() -> None:
        async with Keys(service) as keys:
            await keys.put("dead/_config/size", "1")
            ends = (f"127.0.0.1:{free_port()}", f"http://{service.endpoint}")
            who = await begun(config(tmp_path, service, "dead", discovery_endpoints=ends))
            assert [member.name for member in who.first] == ["m1"]

    asyncio.run(story())


def test_the_service_comes_late_and_goes_away(tmp_path: Path, reference: Binaries) -> None:
    """It is asked again and again, and what was registered before counts."""

    async def story() -> None:
        process = Process(reference.etcd, tmp_path / "service", flags=QUICK)
        waits: list[int] = []
        tried = asyncio.Event()

        def backoff(attempt: int) -> float:
            waits.append(attempt)
            tried.set()
            return 0.05

        settings = config(
            tmp_path, process, "late", discovery_request_timeout=1.0, discovery_dial_timeout=0.5
        )
        joining = asyncio.ensure_future(
            join_discovery(settings, MemberID(1), "m1=http://10.0.0.1:1", backoff=backoff)
        )
        try:
            await tried.wait()
            await asyncio.to_thread(process.spawn)
            await asyncio.to_thread(process.wait_ready)
            async with Keys(process) as keys:
                # The failures before it is there: no connection; then: no such token.
                with pytest.raises(DiscoveryFailed, match="size key not found"):
                    await joining
                assert waits[:1] == [1]
                await keys.put("late/_config/size", "2")
                joining = asyncio.ensure_future(
                    join_discovery(settings, MemberID(1), "m1=http://10.0.0.1:1", backoff=backoff)
                )
                while not await keys.read("late/members"):
                    assert not joining.done()
            tried.clear()
            await asyncio.to_thread(process.kill)
            await tried.wait()  # the watch broke
            await asyncio.to_thread(process.start)
            async with Keys(process) as keys:
                await keys.put("late/members/2", "m2=http://10.0.0.2:1")
                assert await joining == "m1=http://10.0.0.1:1,m2=http://10.0.0.2:1"
        finally:
            joining.cancel()
            if process.running:
                await asyncio.to_thread(process.kill)

    asyncio.run(asyncio.wait_for(story(), STORY_SECONDS))


def test_a_service_with_users(tmp_path: Path, reference: Binaries) -> None:
    async def story(process: Process) -> None:
        async with Keys(process) as keys:
            await keys.put("users/_config/size", "1")
            await keys.call("Auth/UserAdd", pb.AuthUserAddRequest(name="root", password="secret"))
            await keys.call(
                "Auth/UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root")
            )
            ready = await begun(
                config(tmp_path, process, "users", 1, discovery_user="root:secret")
            )  # users that are not asked for do no harm
            assert len(ready.first) == 1
            await keys.call("Auth/AuthEnable", pb.AuthEnableRequest())
            with pytest.raises(RpcError, match="user name is empty"):
                await keys.read("users")
        again = await begun(
            config(
                tmp_path, process, "users", 1, discovery_user="root", discovery_password="secret"
            )
        )
        assert again == ready
        text = await failure(config(tmp_path, process, "users", 1, discovery_user="root:wrong"))
        assert "authentication failed, invalid user ID or password" in text

    process = Process(reference.etcd, tmp_path / "service")
    process.start()
    try:
        asyncio.run(story(process))
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"discovery_endpoints": ("nonsense",)}, "does not have the form"),
        ({"discovery_user": "root"}, '--discovery-user "root" has no password'),
        (
            {"discovery_user": "a:b", "discovery_auth_token": "jwt"},
            "username/password and token configurations are mutually exclusive",
        ),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, service: Process, settings: dict[str, Any], why: str
) -> None:
    assert why in asyncio.run(failure(config(tmp_path, service, "t", **settings)))
