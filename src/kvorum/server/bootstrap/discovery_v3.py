"""The members of a new cluster, told by a discovery service: an etcd (or Kvorum) cluster that runs
already, in which each of them registers itself and waits for the others
(``--discovery-token``, ``--discovery-endpoints``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from kvorum.config import ServerConfig
from kvorum.h2 import RpcError
from kvorum.log import get_logger
from kvorum.server.bootstrap.discovery_client import BadEndpoint, DiscoveryClient
from kvorum.server.bootstrap.discovery_registry import Registry, RegistryError, parse_size
from kvorum.server.errors import DiscoveryFailed
from kvorum.types import MemberID, Revision

MAX_DOUBLINGS: Final = 8

Backoff = Callable[[int], float]
T = TypeVar("T")

lg = get_logger()


def backoff_of_etcd(attempt: int) -> float:
    """Seconds to wait after so many failures in a row: 2, 4, ... 256."""
    return float(1 << min(attempt, MAX_DOUBLINGS))


async def join_discovery(
    config: ServerConfig,
    member: MemberID,
    registration: str,
    *,
    backoff: Backoff = backoff_of_etcd,
) -> str:
    """Register ``registration`` (``name=url``) and return all members' as ``name=url,name=url``.

    Waits for as long as it takes until all have come; a service that does not answer is asked again
    and again.

    Raises:
        DiscoveryFailed: the service refuses, has no such token, or the cluster is complete.
    """
    try:
        client = DiscoveryClient(config)
    except BadEndpoint as error:
        raise DiscoveryFailed(str(error)) from None
    try:
        await _log_in(client, config)
        joined = await _Discovery(client, config, member, backoff).join(registration)
    except (RegistryError, RpcError) as error:
        lg.error("discovery failed to join cluster", **_place(config), error=error)
        raise DiscoveryFailed(f"failed to join discovery cluster ({error})") from None
    finally:
        await client.close()
    lg.info("discovery joined cluster successfully", **_place(config), cluster=joined)
    return joined


async def _log_in(client: DiscoveryClient, config: ServerConfig) -> None:
    try:
        async with asyncio.timeout(config.discovery_dial_timeout or None):
            await client.log_in()
    except TimeoutError:
        raise RegistryError("the discovery service cannot be reached to log in") from None


def _place(config: ServerConfig) -> dict[str, str]:
    return {
        "discovery_token": config.discovery_token,
        "discovery_endpoints": ",".join(config.discovery_endpoints),
    }


class _Discovery:
    """One member's way into the registry."""

    def __init__(
        self, client: DiscoveryClient, config: ServerConfig, member: MemberID, backoff: Backoff
    ) -> None:
        self._client = client
        self._registry = Registry(config.discovery_token)
        self._member = member
        self._backoff = backoff
        self._failures = 0

    async def join(self, registration: str) -> str:
        registry = self._registry
        await self._repeat("cluster status check", self._check)
        key = registry.key_of(self._member)
        await self._repeat(
            "register member itself", lambda: self._client.put(key, registration.encode())
        )
        lg.info(
            "register member itself successfully",
            member_key=key.decode(),
            member_info=registration,
        )
        size, revision = await self._repeat("cluster status check", self._check)
        while len(registry) < size:
            lg.info(
                "waiting for peers from discovery service",
                cluster_size=size,
                found_peers=len(registry),
            )
            try:
                await self._watch(size, revision)
            except RpcError as error:
                await self._pause("watch for peers", error)
                size, revision = await self._repeat("cluster status check", self._check)
        lg.info("found all needed peers from discovery service", cluster_size=size)
        return registry.initial_cluster(size)

    async def _check(self) -> tuple[int, Revision]:
        """Read size and members, and the revision of that reading. Raises RegistryError if the
        cluster cannot be, or is complete without us."""
        registry = self._registry
        found = await self._client.range(registry.size_key)
        size = parse_size(found.kvs[0].value if found.kvs else None)
        listed = await self._client.range(registry.members_key, _prefix_end(registry.members_key))
        registry.clear()
        for kv in listed.kvs:
            self._add(kv.key, kv.value, kv.create_revision)
        registry.require_room(self._member, size)
        return size, Revision(listed.header.revision)

    async def _watch(self, size: int, revision: Revision) -> None:
        key = self._registry.members_key
        async with aclosing(self._client.watch(key, _prefix_end(key), revision + 1)) as events:
            async for event in events:
                self._add(event.kv.key, event.kv.value, event.kv.create_revision)
                if len(self._registry) >= size:
                    return
        raise RegistryError("the discovery service ended the watch")

    def _add(self, key: bytes, value: bytes, create_revision: int) -> None:
        problem = self._registry.add(key, value, create_revision)
        fields = {"member_key": key.decode(), "member_info": value.decode("utf-8", "replace")}
        if problem:
            lg.warn(problem, **fields)
        else:
            lg.info("found peer from discovery service", **fields)

    async def _repeat(self, step: str, work: Callable[[], Awaitable[T]]) -> T:
        """Until the service answers."""
        while True:
            try:
                result = await work()
            except RpcError as error:
                await self._pause(step, error)
            else:
                self._failures = 0
                return result

    async def _pause(self, step: str, error: RpcError) -> None:
        self._failures += 1
        seconds = self._backoff(self._failures)
        lg.warn(
            "retry connecting to discovery service", reason=step, backoff=seconds, error=str(error)
        )
        await asyncio.sleep(seconds)


def _prefix_end(prefix: bytes) -> bytes:
    """The first key that does not begin with ``prefix``, which ends with a letter."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
