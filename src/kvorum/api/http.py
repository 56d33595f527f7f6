"""Plain HTTP on the client port: version, health, metrics, debugging; and the front before them.

The JSON gateway is mounted from outside (`HttpService.mount`), so that this knows no gRPC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Final
from urllib.parse import unquote

from kvorum.api.debug import debug_routes
from kvorum.api.healthchecks import HealthChecks
from kvorum.api.httpkit import not_found, only_get
from kvorum.api.metrics import MetricsPage
from kvorum.api.mirror import mirror
from kvorum.h2.http import Headers, HttpHandler, HttpRequest, HttpResponse, text_response
from kvorum.log import get_logger
from kvorum.server.cluster.versions import versions_document
from kvorum.server.server import Server
from kvorum.telemetry import Telemetry

lg = get_logger()


class HttpService:
    """Answers HTTP requests: `handle` those of client listeners, `handle_metrics` those of
    listeners for metrics, which have neither host check nor CORS, and fewer paths."""

    def __init__(self, server: Server, telemetry: Telemetry) -> None:
        self._server = server
        self._access = AccessControl(server.config.cors, server.config.host_whitelist)
        mirror(telemetry, server)
        health = HealthChecks(server, telemetry.health)
        page = MetricsPage(telemetry)
        self._observing: dict[str, HttpHandler] = {"/metrics": page.handle, **health.routes()}
        self._routes: dict[str, HttpHandler] = {
            **self._observing,
            "/version": only_get(self._version),
            **debug_routes(server),
        }
        self._mounted: list[tuple[str, HttpHandler]] = []

    def mount(self, prefix: str, handler: HttpHandler) -> None:
        """Let `handler` answer all paths below `prefix` (it ends with a slash) that have no
        answer of their own."""
        assert prefix.endswith("/"), prefix
        self._mounted.append((prefix, handler))

    def handle(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        """The answer to a request on a client listener."""
        if not request.secure:
            host = host_name(request.header("host"))
            if not self._access.takes_host(host):
                lg.warn("rejecting HTTP request to prevent DNS rebinding attacks", host=host)
                return text_response(421, _UNKNOWN_HOST.format(host=host))
        cors = self._access.cors_headers(request.header("origin"))
        if request.method == "OPTIONS":
            return HttpResponse(200, headers=cors)
        if request.path.startswith("/v3beta/"):
            request.path = "/v3/" + request.path.removeprefix("/v3beta/")
        return _with_headers(self._find(request.path)(request), cors)

    def handle_metrics(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        """The answer to a request on a metrics listener."""
        return self._observing.get(request.path, not_found)(request)

    def _find(self, path: str) -> HttpHandler:
        handler = self._routes.get(path) or self._routes.get(unquote(path))
        if handler is not None:
            return handler
        for prefix, mounted in self._mounted:
            if path.startswith(prefix):
                return mounted
        return not_found

    def _version(self, request: HttpRequest) -> HttpResponse:
        del request
        server = self._server
        body = versions_document(server.cluster.version, server.storage_version)
        return HttpResponse(200, body, [("Content-Type", "application/json")])


def _with_headers(
    answer: HttpResponse | Awaitable[HttpResponse], headers: Headers
) -> HttpResponse | Awaitable[HttpResponse]:
    if isinstance(answer, HttpResponse):
        answer.headers = [*answer.headers, *headers]
        return answer
    return _later_with_headers(answer, headers)


async def _later_with_headers(answer: Awaitable[HttpResponse], headers: Headers) -> HttpResponse:
    response = await answer
    response.headers = [*response.headers, *headers]
    return response


_UNKNOWN_HOST: Final = """\
The Host header of this request, {host}, is not one that this server answers to.

Either
- enable TLS, over which every host name is taken, or
- add the name to the list: --host-whitelist "{host}"

This keeps web pages from reaching the server by DNS rebinding (CVE-2018-5702)."""


class AccessControl:
    """Which origins and host names are let in (``--cors``, ``--host-whitelist``); an empty list,
    like ``*``, lets all in."""

    def __init__(self, origins: Collection[str], hosts: Collection[str]) -> None:
        self._origins = _closed_set(origins)
        self._hosts = _closed_set(hosts)

    def takes_host(self, host: str) -> bool:
        return self._hosts is None or host in self._hosts

    def cors_headers(self, origin: str) -> Headers:
        """The headers for a request from `origin` (empty when it names none)."""
        if self._origins is None:
            origin = "*"
        elif origin not in self._origins:
            return []
        return [
            ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
        ]


def _closed_set(names: Collection[str]) -> frozenset[str] | None:
    """None when all are let in."""
    chosen = frozenset(filter(None, names))
    return None if not chosen or "*" in chosen else chosen


def host_name(host: str) -> str:
    """The name in a Host header: without the port, and without the brackets of an IPv6 address."""
    name, colon, port = host.rpartition(":")
    if name.startswith("[") and name.endswith("]") and colon:
        return name[1:-1]
    if colon and ":" not in name and (port == "" or port.isdecimal()):
        return name
    return host
