"""Clients that watch, lose their stream, and go on at another member where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvorum.pb import etcdserverpb as pb
from kvorum.testing.watch_guarantees import Response, Watch
from sim import words
from sim.calls import LOST, ClientCall, Outcome
from sim.clients import RETRY, Caller

if TYPE_CHECKING:
    from kvorum.testing.history import Event

ASKING_INTERVAL: Final = 1.0
"""Seconds."""
PROGRESS: Final = pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString()


class Watcher:
    """One range, watched in a chain of watches; ``watches`` has them all."""

    def __init__(self, caller: Caller, key: bytes, end: bytes, *, prev: bool) -> None:
        self.stopped = False
        self._settled = False
        self.watches: list[Watch] = []
        self._caller = caller
        self._key = key
        self._end = end
        self._prev = prev
        self._call: ClientCall | None = None
        self._read_time = caller.random.choice([0.0, 0.0, 0.1, 0.4])
        self._parts: list[Event] = []

    def start(self) -> None:
        self._open(Watch(self._key, self._end, 0, prev=self._prev))
        self._later()

    @property
    def current(self) -> Watch:
        return self.watches[-1]

    def _open(self, watch: Watch) -> None:
        watch.name = f"{self._caller.name} #{len(self.watches)}"
        self.watches.append(watch)
        create = pb.WatchCreateRequest(
            key=watch.key,
            range_end=watch.end,
            start_revision=watch.start,
            prev_kv=watch.prev,
            progress_notify=self._caller.random.random() < 0.5,
            fragment=self._caller.random.random() < 0.3,
        )
        self._call = self._caller.stream(
            words.WATCH,
            lambda m: self._take(watch, m),
            lambda o: self._lost(watch, o),
            self._read_time,
        )
        if self._call is None:
            self._caller.world.after(RETRY, self._lost, watch, Outcome(LOST))
        else:
            self._call.send(pb.WatchRequest(create_request=create).SerializeToString())
            if self._caller.random.random() < 0.3:
                self._call.send(PROGRESS)

    def _take(self, watch: Watch, message: bytes) -> None:
        made = pb.WatchResponse.FromString(message)
        events = tuple(map(words.event, made.events))
        revision = made.header.revision
        watch.responses.append(
            Response(
                revision,
                events,
                created=made.created,
                canceled=made.canceled,
                compacted=made.compact_revision,
                fragment=made.fragment,
            )
        )
        if made.canceled and self._call is not None:
            self._call.end(Outcome(LOST, error="canceled"))

    def _lost(self, watch: Watch, outcome: Outcome) -> None:
        """The stream has ended: go on after the last revision that is whole."""
        if self.stopped or watch is not self.current:
            return
        self._open(self._successor(watch))

    def _successor(self, watch: Watch) -> Watch:
        last = watch.responses[-1] if watch.responses else None
        if last is not None and last.canceled:
            # Its history is gone: a new watch, which owes nothing to this one.
            return Watch(self._key, self._end, max(last.compacted, 1), prev=self._prev)
        while watch.responses and watch.responses[-1].fragment:
            watch.responses.pop()  # a part is as good as nothing
        resumed = Watch(self._key, self._end, watch.next_start(), prev=self._prev)
        resumed.resumes = watch if watch.reached() else None
        return resumed

    def _later(self) -> None:
        self._caller.world.after(self._caller.random.expovariate(1 / 3.0), self._fidget)

    def _fidget(self) -> None:
        """Ask for progress, or leave and come back."""
        if self.stopped or self._settled:
            return
        self._later()
        if self._call is None or self._call.ended:
            return
        if self._caller.random.random() < 0.6:
            self._call.send(PROGRESS)
        else:
            self._call.end(Outcome(LOST, error="left"))

    def settle(self) -> None:
        """From now on stay, and ask for progress regularly: left to chance, the next time may be
        after the end of the run."""
        self._settled = True
        self._ask()

    def _ask(self) -> None:
        if self._call is not None and not self._call.ended:
            self._call.send(PROGRESS)
        self._caller.world.after(ASKING_INTERVAL, self._ask)
