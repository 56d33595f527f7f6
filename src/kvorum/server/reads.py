"""Linearizable reads: one ReadIndex for all reads of a turn (Raft thesis, section 6.4).

A batch asks consensus for the commit index at a moment after all its reads arrived, and is
answered from the store once that index was applied here. Where an answer takes its time, since
other members have a say in it, the owner lets what comes meanwhile gather for the next batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from kvorum import errors
from kvorum.errors import Code, EtcdError
from kvorum.log import get_logger
from kvorum.server.proposer import Caller, fail
from kvorum.types import Index

Run = Callable[[Any, Caller], None]
Read = tuple[Run, Any, Caller]

MAX_WAITING: Final = 100_000
RETRY_SECONDS: Final = 0.5

lg = get_logger()


class _Batch:
    __slots__ = ("asked", "context", "index", "reads", "started")

    def __init__(self, context: bytes, reads: list[Read], started: float) -> None:
        self.context = context
        self.reads = reads
        self.started = started
        self.asked = started
        self.index: Index | None = None


class ReadGate:
    """Reads that wait for their turn.

    ``ask`` sends a ReadIndex with a context; the answer comes back through `confirm`. ``wake`` is
    called when the first read of a batch has come, and the owner then calls `send`.
    """

    def __init__(
        self,
        *,
        next_id: Callable[[], int],
        ask: Callable[[bytes], None],
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.failed = 0
        self.slow = 0
        self.closed: type[EtcdError] | None = None
        self._next_id = next_id
        self._ask = ask
        self._wake = wake
        self._clock = clock
        self._gathering: list[Read] = []
        self._since = 0.0  # when the first of those came
        self._batches: deque[_Batch] = deque()
        self._waiting = 0

    @property
    def gathered(self) -> bool:
        """Whether there are reads that `send` has not taken yet."""
        return bool(self._gathering)

    @property
    def unanswered(self) -> bool:
        """Whether consensus still owes an answer."""
        return bool(self._batches) and self._batches[-1].index is None

    def read(self, run: Run, request: Any, caller: Caller) -> None:
        """Call ``run(request, caller)`` once the store is fresh enough, or fail the caller."""
        if self.closed is not None:
            fail(caller, self.closed)
            return
        if self._waiting >= MAX_WAITING:
            fail(caller, errors.RequestTooManyRequests)
            return
        self._waiting += 1
        if not self._gathering:
            self._since = self._clock()
            self._wake()
        self._gathering.append((run, request, caller))

    def send(self) -> None:
        """Ask for a read index for everything gathered so far."""
        if not self._gathering:
            return
        context = self._next_id().to_bytes(8, "big")
        self._batches.append(_Batch(context, self._gathering, self._since))
        self._gathering = []
        self._ask(context)

    def ask_again(self) -> None:
        """Whatever was asked may be lost, as with a leader that is none any more: ask for all at
        once, what was gathered since included."""
        if not self.unanswered:
            return
        now = self._clock()
        for batch in self._batches:
            batch.asked = now
        if self._gathering:
            self.send()
        else:
            self._ask(self._batches[-1].context)

    def confirm(self, context: bytes, index: Index) -> None:
        """Consensus answered: reads asked for under this context, or before it, may see the state
        at ``index``. An answer to a batch that is gone, or was asked again, is passed over.
        """
        if not any(batch.context == context for batch in self._batches):
            return
        for batch in self._batches:
            if batch.index is None:
                batch.index = index
            if batch.context == context:
                break

    def release(self, applied: Index) -> None:
        """Answer the batches whose index was applied."""
        batches = self._batches
        while batches and batches[0].index is not None and batches[0].index <= applied:
            batch = batches.popleft()
            self._waiting -= len(batch.reads)
            for run, request, caller in batch.reads:
                try:
                    run(request, caller)
                except Exception as error:  # a bug, but a read can have broken nothing
                    lg.error("a read failed", request=str(request), error=repr(error))
                    caller.fail(Code.INTERNAL, f"kvorum: {error!r}")

    def expire(
        self,
        now: float,
        timeout: float,
        why: Callable[[], type[EtcdError]] = lambda: errors.Timeout,
    ) -> None:
        """Ask again for batches without an answer, and give up on those that are too old."""
        batches = self._batches
        while batches and now - batches[0].started >= timeout:
            self.failed += 1
            self._refuse(batches.popleft(), why())
        if not self.unanswered:
            if self._gathering:
                self._wake()
        elif now - batches[-1].asked >= RETRY_SECONDS:
            self.slow += 1
            self.ask_again()

    def close(self, error: type[EtcdError]) -> None:
        """Refuse everything that waits, and all that comes from now on."""
        self.closed = error
        if self._gathering:
            self._batches.append(_Batch(b"", self._gathering, 0.0))
            self._gathering = []
        while self._batches:
            self._refuse(self._batches.popleft(), error)

    def _refuse(self, batch: _Batch, error: type[EtcdError]) -> None:
        self._waiting -= len(batch.reads)
        for _, _, caller in batch.reads:
            fail(caller, error)
