"""/health, /livez and /readyz: whether this member, and its cluster, can be relied upon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from kvorum.api.httpkit import NO_SNIFF, PLAIN_TEXT, method_not_allowed, query_of
from kvorum.errors import EtcdError
from kvorum.h2.http import HttpHandler, HttpRequest, HttpResponse, text_response
from kvorum.log import get_logger
from kvorum.pb import etcdserverpb as pb
from kvorum.server.server import Server
from kvorum.telemetry import HealthMetrics

lg = get_logger()


class CheckFailed(Exception):
    """A check did not pass; the text says why."""


Check = Callable[[], Awaitable[None]]
FIRST_KEY: Final = b"\x00"


class _Reader:
    """The caller of a consensus read: resolves `done` once the store is fresh."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, code: int, message: str) -> None:
        del code
        if not self.done.done():
            self.done.set_exception(CheckFailed(message))

    def reply(self, message: bytes) -> None:
        raise AssertionError("the read replies through its own function")

    def fresh(self) -> None:
        if not self.done.done():  # the client may have gone, and the wait with it
            self.done.set_result(None)


class HealthChecks:
    """The checks and their paths. Results are counted in `metrics`."""

    def __init__(self, server: Server, metrics: HealthMetrics) -> None:
        self._server = server
        self._metrics = metrics
        livez: dict[str, Check] = {"serializable_read": self._read_here}
        readyz: dict[str, Check] = {
            "data_corruption": self._no_corruption,
            "serializable_read": self._read_here,
            "linearizable_read": self._read_through_consensus,
            "non_learner": self._no_learner,
        }
        self._groups: dict[str, Mapping[str, Check]] = {"livez": livez, "readyz": readyz}

    def routes(self) -> dict[str, HttpHandler]:
        """Paths and handlers: each group and, below it, each of its checks."""
        routes: dict[str, HttpHandler] = {"/health": self.health}
        for group, checks in self._groups.items():
            routes[f"/{group}"] = self._handler(group, list(checks))
            for name in checks:
                routes[f"/{group}/{name}"] = self._handler(group, [name])
        return routes

    # /health, the older form

    def health(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        if request.method != "GET":
            lg.warn("/health error", status_code=405)
            return method_not_allowed("GET")
        return self._health(request)

    async def _health(self, request: HttpRequest) -> HttpResponse:
        query = query_of(request)
        serializable = query.get("serializable", [""])[0] == "true"
        reason = await self._why_unhealthy(query.get("exclude", []), serializable)
        fields = {"health": "false" if reason else "true", "reason": reason}
        body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        if reason:
            self._metrics.failures.value += 1
            lg.warn("/health error", output=body, status_code=503)
            return text_response(503, body)
        self._metrics.successes.value += 1
        return HttpResponse(200, body.encode(), [PLAIN_TEXT])

    async def _why_unhealthy(self, excluded: Sequence[str], serializable: bool) -> str:
        """The first reason, empty for a healthy member."""
        for alarm in self._server.alarms.get():
            name = alarm_name(alarm.alarm)
            if name not in excluded:
                lg.warn("serving /health false due to an alarm", alarm=name)
                return f"ALARM {name}"
        if not serializable and not self._server.raft.leader:
            lg.warn("serving /health false; no leader")
            return "RAFT NO LEADER"
        try:
            await (self._read_here() if serializable else self._read_through_consensus())
        except CheckFailed as failure:
            lg.warn("serving /health false; Range fails", error=failure)
            return f"RANGE ERROR:{failure}"
        return ""

    # /livez and /readyz

    def _handler(self, group: str, names: list[str]) -> HttpHandler:
        def handle(request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
            if request.method != "GET":
                lg.warn("Health request error", path=request.path, status_code=405)
                return method_not_allowed("GET")
            return self._run(group, names, request)

        return handle

    async def _run(self, group: str, names: list[str], request: HttpRequest) -> HttpResponse:
        query = query_of(request)
        chosen = names
        if request.path.strip("/") == group:  # only the group as a whole leaves checks out
            chosen = _without(names, query.get("exclude", []))
        results = [(name, await self._result(group, name)) for name in chosen]
        lines = "".join(
            f"[-]{name} failed: {why}\n" if why else f"[+]{name} ok\n" for name, why in results
        )
        if any(why for _, why in results):
            lg.error("Health check error", path=request.path, reason=lines, status_code=503)
            return text_response(503, lines)
        body = f"{lines}ok\n" if "verbose" in query else "ok\n"
        return HttpResponse(200, body.encode(), [PLAIN_TEXT, NO_SNIFF])

    async def _result(self, group: str, name: str) -> str:
        """Why the check failed, empty when it passed."""
        why = ""
        try:
            await self._groups[group][name]()
        except CheckFailed as failure:
            why = str(failure) or "unknown"
        status = "error" if why else "success"
        self._metrics.last.with_labels(group, name).value = 0 if why else 1
        self._metrics.checks.with_labels(group, name, status).value += 1
        return why

    # The checks

    async def _no_corruption(self) -> None:
        if self._server.alarms.get(pb.CORRUPT):
            raise CheckFailed("alarm activated: CORRUPT")

    async def _no_learner(self) -> None:
        if self._server.cluster.is_learner():
            raise CheckFailed("not supported for learner")

    async def _read_here(self) -> None:
        try:
            self._server.store.range_keys(FIRST_KEY, b"", limit=1)
        except EtcdError as error:
            raise CheckFailed(str(error)) from error

    async def _read_through_consensus(self) -> None:
        reader = _Reader()
        self._server.reads.read(lambda _request, _caller: reader.fresh(), None, reader)
        await reader.done
        await self._read_here()


def _without(names: list[str], excluded: Sequence[str]) -> list[str]:
    missing = sorted(set(filter(None, excluded)).difference(names))
    if missing:
        quoted = ",".join(f'"{name}"' for name in missing)
        lg.warn("some health checks cannot be excluded", missing_health_checks=quoted)
    return [name for name in names if name not in excluded]


def alarm_name(kind: int) -> str:
    """NOSPACE, CORRUPT, or UNKNOWN for a kind of a later version."""
    if kind == pb.NOSPACE:
        return "NOSPACE"
    return "CORRUPT" if kind == pb.CORRUPT else "UNKNOWN"
