"""A member inside the test's own process, on the test's own event loop, and a client of it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec

import uvloop
from support.ports import free_port
from support.rpc import PUT, Rpc

from kvorum.config import ServerConfig, make, parse_urls
from kvorum.embed import Member
from kvorum.errors import Code, EtcdError
from kvorum.h2 import Channel, RpcError, StreamCall
from kvorum.pb import etcdserverpb as pb

STORY_SECONDS = 60.0
CALL_SECONDS = 20.0

P = ParamSpec("P")


def story(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an asynchronous test on a fresh loop of the kind that members run on."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(STORY_SECONDS):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run


def config_of(folder: Path, **settings: Any) -> ServerConfig:
    """Settings of a member with a port of its own, and without waiting for the disk."""
    client, peer = (parse_urls(f"http://127.0.0.1:{free_port()}") for _ in range(2))
    defaults: dict[str, Any] = {
        "data_dir": str(folder / "data"),
        "name": "m",
        "listen_client_urls": client,
        "advertise_client_urls": settings.get("listen_client_urls", client),
        "listen_peer_urls": peer,
        "initial_advertise_peer_urls": peer,
        "unsafe_no_fsync": True,
    }
    return make(**(defaults | settings))


class Refused(Exception):
    """A call that the test expected to work had another end."""


class Client:
    """Typed calls over one connection."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.channel = Channel("127.0.0.1", config.listen_client_urls[0].port)

    def another(self) -> Client:
        """A second connection to the same member."""
        return Client(self._config)

    async def call(self, rpc: Rpc, *, timeout: float = CALL_SECONDS, **fields: Any) -> Any:  # noqa: ASYNC109
        """The parsed reply."""
        try:
            return rpc.response.FromString(
                await self.channel.unary(
                    rpc.path, rpc.request(**fields).SerializeToString(), timeout=timeout
                )
            )
        except RpcError as error:
            raise Refused(f"{rpc.path}: {Code(error.code).name}: {error.message}") from error

    async def error(self, rpc: Rpc, **fields: Any) -> tuple[Code, str]:
        """The status of a call that is refused."""
        return await self.raw_error(rpc.path, rpc.request(**fields).SerializeToString())

    async def raw_error(self, path: str, message: bytes) -> tuple[Code, str]:
        try:
            await self.channel.unary(path, message, timeout=CALL_SECONDS)
        except RpcError as error:
            return Code(error.code), error.message
        raise AssertionError(f"{path} was not refused")

    async def put(self, key: bytes, value: bytes = b"", **fields: Any) -> int:
        """The revision of a put."""
        response = await self.call(PUT, key=key, value=value, **fields)
        return int(response.header.revision)

    async def stream(self, path: str) -> StreamCall:
        return await self.channel.stream(path)

    async def close(self) -> None:
        await self.channel.close()


def status(error: type[EtcdError]) -> tuple[Code, str]:
    """What a client sees of one of etcd's errors."""
    return error.code, error.message


@asynccontextmanager
async def member_on(config: ServerConfig) -> AsyncIterator[tuple[Member, Client]]:
    """A member that serves and has come to rest, and a client of it."""
    async with Member(config) as member:
        while not member.server.cluster.version:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.001)
        client = Client(config)
        try:
            yield member, client
        finally:
            await client.close()


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[tuple[Member, Client]]:
    """The same in a folder of the test's own."""
    async with member_on(config_of(folder, **settings)) as pair:
        yield pair


async def read(stream: StreamCall, kind: Any) -> Any:
    """The next message of a stream; None after the last."""
    async with asyncio.timeout(CALL_SECONDS):
        message = await stream.recv()
    return None if message is None else kind.FromString(message)


async def ending(stream: StreamCall) -> tuple[Code, str]:
    """How a stream ends, whatever comes before."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            while await stream.recv() is not None:
                pass
    except RpcError as error:
        return Code(error.code), error.message
    return Code.OK, ""


def op(kind: str, **fields: Any) -> pb.RequestOp:
    """One operation of a transaction: ``op("put", key=b"k")``."""
    return pb.RequestOp(**{f"request_{kind}": fields})
