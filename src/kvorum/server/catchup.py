"""Waiting until this member has applied what it knows to be committed."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from kvorum import errors
from kvorum.types import Index

PATIENCE: Final = 1.0
"""Seconds that are waited, as in etcd."""


class Committed(Protocol):
    @property
    def committed(self) -> Index: ...


class Applying(Protocol):
    @property
    def index(self) -> Index: ...


class CatchUp:
    """``is_done`` costs nothing; ``until_done`` is for when it is false. The owner calls `advanced`
    after each batch that was applied, if ``waiting`` is set."""

    def __init__(self, raft: Committed, applier: Applying, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting = False
        self._raft = raft
        self._applier = applier
        self._loop = loop
        self._waiters: list[tuple[Index, asyncio.Future[None]]] = []

    def is_done(self) -> bool:
        return self._applier.index >= self._raft.committed

    async def until_done(self) -> None:
        """Return once everything is applied that was committed at the call.

        Raises:
            errors.TimeoutWaitAppliedIndex: it took more than `PATIENCE`.
        """
        if self.is_done():
            return
        done: asyncio.Future[None] = self._loop.create_future()
        waiter = (self._raft.committed, done)
        self._waiters.append(waiter)
        self.waiting = True
        alarm = self._loop.call_later(PATIENCE, _give_up, done)
        try:
            await done
        finally:
            alarm.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self.waiting = bool(self._waiters)

    def advanced(self) -> None:
        """More was applied."""
        index = self._applier.index
        for wanted, done in self._waiters:
            if wanted <= index and not done.done():
                done.set_result(None)


def _give_up(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(errors.TimeoutWaitAppliedIndex())
