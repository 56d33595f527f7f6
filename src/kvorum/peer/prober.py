"""Asks a peer every few seconds whether it is there: round trips, and how its clock goes."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Final

from kvorum import log
from kvorum.peer.context import Contact, Context

PATH: Final = "/raft/probing"

_ROUND_TRIPPER: Final = "ROUND_TRIPPER_RAFT_MESSAGE"
_FIRST_REPORT: Final = 5.0
_DRIFT_REPORTS: Final = 30.0
_MAX_DRIFT: Final = 1.0
"""Seconds: after that of a start nothing is said of a peer that is not there yet; between two
complaints about its clock; and by how much that may differ from ours."""


class Prober:
    """Runs for as long as the peer is one."""

    def __init__(self, ctx: Context, contact: Contact) -> None:
        self._ctx = ctx
        self._contact = contact
        self._turn = 0
        self._rtt = 0.0
        self._report_after = ctx.loop.time() + _FIRST_REPORT
        self._drift_after = 0.0
        self._seconds = ctx.metrics.round_trip.with_labels(contact.name)
        self._task = ctx.spawn(self._run())

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._ctx.timing.probe)
            await self._probe()

    async def _probe(self) -> None:
        ctx, timing = self._ctx, self._ctx.timing
        urls = self._contact.picker.urls
        url = str(urls[self._turn % len(urls)])
        started = ctx.timer()
        try:
            reply = await ctx.http.request("GET", url, PATH, timeout=timing.idle, max_body=4096)
            now = _clock_of(reply.status, reply.body)
        except (OSError, ValueError) as error:
            self._turn += 1
            self._unhealthy(str(error) or type(error).__name__)
            return
        self._rtt = ctx.timer() - started
        self._seconds.observe(self._rtt)
        self._check_drift(now)

    def _unhealthy(self, error: object) -> None:
        if self._ctx.loop.time() >= self._report_after:
            self._ctx.lg.warn("prober detected unhealthy status", **self._fields(), error=error)

    def _check_drift(self, theirs: float) -> None:
        ctx = self._ctx
        drift = ctx.wall() / 1e9 - theirs - self._rtt / 2
        if abs(drift) > _MAX_DRIFT and ctx.loop.time() >= self._drift_after:
            self._drift_after = ctx.loop.time() + _DRIFT_REPORTS
            ctx.lg.warn(
                "prober found high clock drift", **self._fields(), clock_drift=log.took(drift)
            )

    def _fields(self) -> dict[str, object]:
        return {
            "round_tripper_name": _ROUND_TRIPPER,
            "remote_peer_id": self._contact.name,
            "rtt": log.took(self._rtt),
        }


def _clock_of(status: int, body: bytes) -> float:
    """The peer's time of day in seconds. Raises ValueError for an answer that is none."""
    if status != 200:
        raise ValueError(f"unexpected http status {status}")
    fields = json.loads(body)
    if not isinstance(fields, dict) or fields.get("OK") is not True:
        raise ValueError("the peer says that it is not well")
    return datetime.fromisoformat(str(fields.get("Now"))).timestamp()
