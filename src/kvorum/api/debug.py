"""/debug: variables of the process and, when asked for, profiles."""

from __future__ import annotations

import asyncio
import cProfile
import gc
import html
import io
import json
import pstats
import resource
import sys
import threading
import traceback
from collections.abc import Awaitable
from typing import Any, Final

from kvorum.api.httpkit import PLAIN_TEXT, only_get, query_of
from kvorum.api.metrics import fd_limit
from kvorum.h2.http import HttpHandler, HttpRequest, HttpResponse, text_response
from kvorum.server.server import Server

DEFAULT_PROFILE_SECONDS: Final = 30
MAX_PROFILE_SECONDS: Final = 300
MAX_TASKS: Final = 1000
"""Tasks whose stacks are listed; a member has a dozen of its own."""


def debug_routes(server: Server) -> dict[str, HttpHandler]:
    """/debug/vars always; the profiles with --enable-pprof, or at log level debug, as in etcd."""
    routes: dict[str, HttpHandler] = {"/debug/vars": only_get(_Variables(server).handle)}
    config = server.config
    if config.enable_pprof or config.log_level == "debug":
        profiles = _Profiles()
        routes["/debug/pprof"] = _to_index
        routes["/debug/pprof/"] = profiles.index
        routes["/debug/pprof/cmdline"] = profiles.command_line
        routes["/debug/pprof/goroutine"] = profiles.stacks
        routes["/debug/pprof/profile"] = profiles.profile
    return routes


class _Variables:
    def __init__(self, server: Server) -> None:
        self._server = server

    def handle(self, request: HttpRequest) -> HttpResponse:
        del request
        shown = {
            "cmdline": [*sys.argv],
            "file_descriptor_limit": int(fd_limit()),
            "memstats": _memory(),
            "raft.status": self._raft(),
        }
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in shown.items()]
        body = "{\n" + ",\n".join(lines) + "\n}\n"
        kind = ("Content-Type", "application/json; charset=utf-8")
        return HttpResponse(200, body.encode(), [kind])

    def _raft(self) -> dict[str, Any]:
        raft = self._server.raft
        return {
            "id": f"{self._server.id:x}",
            "term": raft.term,
            "commit": raft.committed,
            "lead": f"{raft.leader:x}",
            "raftState": "StateLeader" if raft.is_leader else "StateFollower",
            "applied": self._server.applier.index,
        }


def _memory() -> dict[str, int]:
    """Under Go's names, what Python has of the kind."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    collections = [generation["collections"] for generation in gc.get_stats()]
    return {"MaxResident": used.ru_maxrss * 1024, "NumGC": sum(collections)}


def _to_index(request: HttpRequest) -> HttpResponse:
    del request
    return HttpResponse(307, b"", [("Location", "/debug/pprof/")])


class _Profiles:
    """Python's counterparts of Go's profiles, as text; one profile of the CPU at a time."""

    def __init__(self) -> None:
        self._profiling = False

    def index(self, request: HttpRequest) -> HttpResponse:
        del request
        names = ("cmdline", "goroutine", "profile?seconds=5")
        items = "".join(f'<li><a href="{html.escape(name)}">{name}</a></li>' for name in names)
        body = f"<html><title>/debug/pprof/</title><body><ul>{items}</ul></body></html>\n"
        return HttpResponse(200, body.encode(), [("Content-Type", "text/html; charset=utf-8")])

    def command_line(self, request: HttpRequest) -> HttpResponse:
        del request
        return HttpResponse(200, "\0".join(sys.argv).encode(), [PLAIN_TEXT])

    def stacks(self, request: HttpRequest) -> HttpResponse:
        """Where each thread and each task stands."""
        del request
        out = io.StringIO()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            out.write(f"thread {names.get(ident, ident)}:\n")
            out.write("".join(traceback.format_stack(frame)))
        for task in list(asyncio.all_tasks())[:MAX_TASKS]:
            out.write(f"task {task.get_name()}:\n")
            task.print_stack(file=out)
        return HttpResponse(200, out.getvalue().encode(), [PLAIN_TEXT])

    def profile(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        """The event loop's thread, watched for some seconds (which costs it half of its speed)."""
        text = query_of(request).get("seconds", [str(DEFAULT_PROFILE_SECONDS)])[0]
        if not (text.isascii() and text.isdecimal() and 0 < int(text) <= MAX_PROFILE_SECONDS):
            return text_response(400, f"seconds must be a number from 1 to {MAX_PROFILE_SECONDS}")
        if self._profiling:
            return text_response(
                500, "Could not enable CPU profiling: cpu profiling already in use"
            )
        return self._profile(int(text))

    async def _profile(self, seconds: int) -> HttpResponse:
        self._profiling = True
        profiler = cProfile.Profile()
        profiler.enable()
        try:
            await asyncio.sleep(seconds)
        finally:
            profiler.disable()
            self._profiling = False
        out = io.StringIO()
        pstats.Stats(profiler, stream=out).sort_stats("tottime").print_stats(100)
        return HttpResponse(200, out.getvalue().encode(), [PLAIN_TEXT])
