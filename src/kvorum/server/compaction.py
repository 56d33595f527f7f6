"""Removes what a compaction left behind, in slices between which requests are served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from kvorum.log import get_logger
from kvorum.mvcc.compaction import Compaction
from kvorum.mvcc.store import Store

lg = get_logger()


class Compactions:
    """Runs the physical part of the store's compactions, first in, first out.

    ``batch_limit`` and ``pause`` (seconds) are ``--compaction-batch-limit`` and
    ``--compaction-sleep-interval``.
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_limit: int,
        pause: float,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._batch_limit = batch_limit
        self._pause = pause
        self._loop = loop
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self._settled: list[Callable[[], None]] = []

    @property
    def running(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        """There is something to remove now."""
        if self._task is None:
            self._task = self._loop.create_task(self._run())

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call back once nothing is left to remove and that is safe on disk."""
        self._settled.append(callback)
        self.start()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None  # one that had not begun yet did not do this itself

    async def _run(self) -> None:
        try:
            await self._run_all()
        except Exception as error:
            self._failed(error)
        finally:
            self._task = None

    async def _run_all(self) -> None:
        queue = self._store.compactions
        while queue or self._settled:
            if queue:
                await self._run_one(queue[0])
                queue.popleft()
            # Without this a crash could bring back what the caller was told is gone.
            await self._store.backend.commit()
            if not queue:
                settled, self._settled = self._settled, []
                for callback in settled:
                    callback()

    async def _run_one(self, job: Compaction) -> None:
        started = self._loop.time()
        await job.run(self._batch_limit, self._pause)
        lg.info(
            "finished scheduled compaction",
            compact_revision=job.rev,
            took=timedelta(seconds=self._loop.time() - started),
            number_of_keys_compacted=job.deleted,
        )
