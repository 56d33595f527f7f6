"""The few calls to a discovery service, at whichever of its endpoints answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from kvorum.config import ServerConfig
from kvorum.config.urls import parse_url
from kvorum.errors import Code
from kvorum.h2 import Channel, RpcError
from kvorum.h2.channel import CLIENT_LIMITS
from kvorum.h2.limits import Limits
from kvorum.log import get_logger
from kvorum.pb import etcdserverpb as pb

MIN_KEEPALIVE: Final = 10.0
"""Seconds. grpc-go pings no more often either, whatever it is told, and etcd cuts off who does."""

_TRY_NEXT: Final = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)

M = TypeVar("M", bound=Message)

lg = get_logger()


class BadEndpoint(ValueError):
    """An endpoint or login that cannot be."""


class DiscoveryClient:
    """Typed calls. Raises RpcError; a call tries the endpoints in turn until one answers."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises BadEndpoint."""
        self._dial_timeout = config.discovery_dial_timeout
        self._timeout = config.discovery_request_timeout
        self._user, self._password = _login(config)
        self._metadata: list[tuple[str, str]] = []
        if config.discovery_auth_token:
            self._metadata = [("token", config.discovery_auth_token)]
        self._channels = [
            _channel(endpoint, _limits(config), config.discovery_dial_timeout)
            for endpoint in config.discovery_endpoints
        ]
        self._current = 0

    async def log_in(self) -> None:
        """Get a token, if there is a user; at a service without users it is not needed."""
        if not self._user:
            return
        request = pb.AuthenticateRequest(name=self._user, password=self._password)
        self._metadata = []
        try:
            reply = await self._unary("Auth/Authenticate", request, pb.AuthenticateResponse)
        except RpcError as error:
            if "authentication is not enabled" not in error.message:
                raise
        else:
            self._metadata = [("token", reply.token)]

    async def range(self, key: bytes, end: bytes = b"") -> pb.RangeResponse:
        request = pb.RangeRequest(key=key, range_end=end)
        return await self._call("KV/Range", request, pb.RangeResponse)

    async def put(self, key: bytes, value: bytes) -> None:
        await self._call("KV/Put", pb.PutRequest(key=key, value=value), pb.PutResponse)

    async def watch(self, key: bytes, end: bytes, revision: int) -> AsyncGenerator[Any]:
        """Events from a revision on; ends when the service says so, or with RpcError."""
        create = pb.WatchCreateRequest(key=key, range_end=end, start_revision=revision)
        channel = self._channels[self._current]
        stream = await channel.stream("/etcdserverpb.Watch/Watch", metadata=self._metadata)
        async with stream:
            await stream.send(pb.WatchRequest(create_request=create).SerializeToString())
            while (message := await stream.recv()) is not None:
                response = pb.WatchResponse.FromString(message)
                if response.canceled:
                    raise RpcError(Code.CANCELLED, response.cancel_reason or "watch canceled")
                for event in response.events:
                    yield event

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def _call(self, method: str, request: Message, reply: type[M]) -> M:
        """Tokens expire while we wait for the others: one more log-in is tried."""
        try:
            return await self._unary(method, request, reply)
        except RpcError as error:
            if error.code != Code.UNAUTHENTICATED or not self._user:
                raise
        await self.log_in()
        return await self._unary(method, request, reply)

    async def _unary(self, method: str, request: Message, reply: type[M]) -> M:
        deadline = asyncio.get_running_loop().time() + self._timeout
        message = request.SerializeToString()
        for attempts_left in reversed(range(len(self._channels))):
            left = deadline - asyncio.get_running_loop().time()
            try:
                answer = await self._channels[self._current].unary(
                    f"/etcdserverpb.{method}",
                    message,
                    timeout=max(0.0, left) / (attempts_left + 1),
                    metadata=self._metadata,
                )
                return reply.FromString(answer)
            except RpcError as error:
                if error.code not in _TRY_NEXT:
                    raise
                self._current = (self._current + 1) % len(self._channels)
                if not attempts_left:
                    raise
        raise AssertionError("no endpoints")


def _login(config: ServerConfig) -> tuple[str, str]:
    """``--discovery-user`` may hold both, as in ``name:password``."""
    user, password = config.discovery_user, config.discovery_password
    if user and not password:
        user, _, password = user.partition(":")
    if user and config.discovery_auth_token:
        raise BadEndpoint("username/password and token configurations are mutually exclusive")
    if user and not password:
        raise BadEndpoint(f'--discovery-user "{user}" has no password')
    return user, password


def _limits(config: ServerConfig) -> Limits:
    keepalive = config.discovery_keepalive_time
    return replace(
        CLIENT_LIMITS,
        max_receive_message=config.discovery_max_recv_bytes or CLIENT_LIMITS.max_receive_message,
        keepalive_interval=max(MIN_KEEPALIVE, keepalive) if keepalive else 0.0,
        keepalive_timeout=config.discovery_keepalive_timeout,
    )


def _channel(endpoint: str, limits: Limits, connect_timeout: float) -> Channel:
    """An endpoint is a URL, or a bare ``host:port``."""
    text = endpoint if "://" in endpoint else f"http://{endpoint}"
    try:
        url = parse_url(text)
    except ValueError as error:
        raise BadEndpoint(f"--discovery-endpoints: {error}") from None
    path = url.socket_path if url.is_unix else None
    return Channel(url.host, url.port, path=path, limits=limits, connect_timeout=connect_timeout)
