"""What members ask of each other over HTTP: their real handlers, without the bytes of HTTP/1.1."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from kvorum.h2.http import HttpHandler, HttpRequest, HttpResponse, split_target
from kvorum.peer.http_client import HttpReply
from kvorum.types import MemberID

if TYPE_CHECKING:
    from sim.network import Network
    from sim.process import Process

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class SimHttp:
    """`kvorum.peer.http_client.HttpClient`, as far as it is used."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    async def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] = _NO_HEADERS,
        body: bytes | AsyncIterable[bytes] = b"",
        timeout: float,  # noqa: ASYNC109
        max_body: int = 1 << 20,
    ) -> HttpReply:
        assert isinstance(body, bytes), "streamed requests are not simulated"
        plain, query = split_target(path)
        named = [(name.lower(), value) for name, value in headers.items()]
        request = HttpRequest(method, plain, query, named, body, "1.1")
        answer: asyncio.Future[HttpReply] = self._process.loop.create_future()
        world, network = self._network.world, self._network
        world.after(network.latency(), self._arrive, url, request, answer)
        async with asyncio.timeout(timeout):
            return await answer

    def _arrive(self, url: str, request: HttpRequest, answer: asyncio.Future[HttpReply]) -> None:
        site = self._network.sites.get(url)
        if site is None or not site.process.alive:
            self._back(lambda: _fail(answer, ConnectionRefusedError(f"{url}: refused")))
        elif self._open(site):
            site.process.spawn(self._serve(site, request, answer))

    def _open(self, site: Site) -> bool:
        """Both ways: a connection that hears no answers is none."""
        mine, theirs = self._network.id_of(self._process), site.member
        reaches = self._network.reaches
        return mine is None or (reaches(mine, theirs) and reaches(theirs, mine))

    async def _serve(
        self, site: Site, request: HttpRequest, answer: asyncio.Future[HttpReply]
    ) -> None:
        response: Any = site.handle(request)
        if inspect.isawaitable(response):
            response = await response
        assert isinstance(response, HttpResponse)
        assert isinstance(response.body, bytes), "streamed replies are not simulated"
        headers = {name.lower(): value for name, value in response.headers}
        reply = HttpReply(response.status, headers, response.body)
        if self._open(site):
            self._back(lambda: None if answer.done() else answer.set_result(reply))

    def _back(self, work: Any) -> None:
        network = self._network
        network.world.after(network.latency(), work, process=self._process)


class Site:
    """What a process serves at its peer URL."""

    def __init__(
        self, process: Process, member: MemberID, routes: Mapping[str, HttpHandler]
    ) -> None:
        self.process = process
        self.member = member
        self._routes = routes

    def handle(self, request: HttpRequest) -> Any:
        handler = self._routes.get(request.path)
        if handler is None:
            prefixes = [p for p in self._routes if p.endswith("/") and request.path.startswith(p)]
            if not prefixes:
                return HttpResponse(404, b"404 page not found\n")
            handler = self._routes[max(prefixes, key=len)]
        return handler(request)


def _fail(answer: asyncio.Future[HttpReply], error: OSError) -> None:
    if not answer.done():
        answer.set_exception(error)
