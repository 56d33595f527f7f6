"""Requests that only the leader can answer, and that do not go through the log: sent to it over the
peers' HTTP, again and again until one arrives or the time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from kvorum import errors
from kvorum.server.cluster.leadership import Leadership
from kvorum.types import MemberID

PAUSE: Final = 0.05
"""Seconds between two rounds over the leader's URLs, as in etcd."""

MAX_WAITING: Final = 10_000
"""Requests that may be on their way to the leader at once."""

T = TypeVar("T")


class Reply(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...


class Requests(Protocol):
    """Requests to other members, as `peer.http_client.HttpClient` makes them: an ``OSError`` is
    raised for one without a reply."""

    async def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] = ...,
        body: bytes = ...,
        timeout: float,  # noqa: ASYNC109
        max_body: int = ...,
    ) -> Reply: ...


class TryAgain(Exception):
    """This attempt failed in a way that says nothing about the request."""


class LedHere(Exception):
    """This member leads itself by now."""


Attempt = Callable[[str, float], Awaitable[T]]
"""One request to the URL of the leader, with the seconds that it may take. What it raises besides
OSError and TryAgain is the answer."""


class ToLeader:
    """Finds the leader and asks it. ``timeout`` is in seconds, for a request as a whole."""

    def __init__(
        self,
        *,
        local: MemberID,
        http: Requests,
        leadership: Leadership,
        timeout: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.http = http
        self._local = local
        self._leadership = leadership
        self._timeout = timeout
        self._loop = loop
        self._waiting = 0
        self._under_way: dict[asyncio.Future[Any], MemberID] = {}

    def leader_changed(self) -> None:
        """Somebody else leads, or nobody: who is asked now may have been cut off, and never answer.
        The next leader is asked instead."""
        for attempt, asked in list(self._under_way.items()):
            if not self._leadership.is_led_by(asked):
                attempt.cancel()

    def deadline(self) -> float:
        """Until when a request that begins now may take (loop time)."""
        return self._loop.time() + self._timeout

    async def ask(self, attempt: Attempt[T], deadline: float) -> T:
        """What the leader answers.

        Raises:
            LedHere: it is this member.
            errors.NoLeader, errors.Timeout: it could not be asked in time.
            errors.RequestTooManyRequests: too many requests wait for it.
        """
        if self._waiting >= MAX_WAITING:
            raise errors.RequestTooManyRequests
        self._waiting += 1
        try:
            return await self._ask(attempt, deadline)
        finally:
            self._waiting -= 1

    async def _ask(self, attempt: Attempt[T], deadline: float) -> T:
        while True:
            leader = await self._leadership.leader(deadline)
            if leader.id == self._local:
                raise LedHere
            for url in leader.peer_urls:
                left = deadline - self._loop.time()
                if left <= 0:
                    raise errors.Timeout
                try:
                    return await self._try(attempt(url, left), leader.id)
                except (OSError, TryAgain):
                    continue
            await asyncio.sleep(PAUSE)

    async def _try(self, work: Awaitable[T], asked: MemberID) -> T:
        attempt = asyncio.ensure_future(work)
        self._under_way[attempt] = asked
        try:
            await asyncio.wait((attempt,))
        finally:
            del self._under_way[attempt]
            attempt.cancel()
        if attempt.cancelled():
            raise TryAgain("the leader is another")
        return attempt.result()
