"""Plain HTTP between members of one process: no sockets, but the network's cuts hold here too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from kvorum.h2.http import HttpRequest, HttpResponse
from kvorum.server.cluster.peer_routes import peer_routes

if TYPE_CHECKING:
    from support.cluster import Node, TestCluster


class WireReply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class WireHttp:
    """One member's client."""

    def __init__(self, cluster: TestCluster, name: str) -> None:
        self._cluster = cluster
        self._name = name

    async def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        timeout: float,  # noqa: ASYNC109
        max_body: int = 1 << 20,
    ) -> WireReply:
        await asyncio.sleep(0)
        target = self._target(url)
        lower = [(name.lower(), value) for name, value in headers.items()]
        request = HttpRequest(method, path, "", lower, body, "1.1")
        async with asyncio.timeout(timeout):
            response = await _answer(target, request)
        assert isinstance(response.body, bytes)
        assert len(response.body) <= max_body
        found = {name.lower(): value for name, value in response.headers}
        return WireReply(response.status, found, response.body)

    def _target(self, url: str) -> Node:
        cluster = self._cluster
        name = next((name for name, peer in cluster.peers.items() if peer == url), None)
        node = cluster.nodes.get(name or "")
        if node is None or not node.running:
            raise ConnectionRefusedError(url)
        own = cluster.nodes[self._name]
        if own.running and not cluster.wire.passes(own.id, node.id):
            raise ConnectionResetError(url)
        return node


async def _answer(node: Node, request: HttpRequest) -> HttpResponse:
    routes = peer_routes(node.server)
    handler = routes.get(request.path) or next(
        (routes[p] for p in routes if p.endswith("/") and request.path.startswith(p)), None
    )
    if handler is None:
        return HttpResponse(404)
    answer = handler(request)
    return answer if isinstance(answer, HttpResponse) else await answer
