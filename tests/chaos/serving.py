"""Which member served a watch, what befell it meanwhile, and what is known to be wrong with it."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kvorum.testing.history import Event
from kvorum.testing.watch_guarantees import Response, Watch

Release = tuple[int, int, int]
Life = deque[tuple[float, str]]
"""What was done to a member, and when, by the clock of the run."""

RESENDS_BEFORE: Final[Release] = (3, 5, 8)
"""Up to etcd 3.5.7 a member on which a snapshot is installed sends the watches that were up to date
all over again what they had been sent since they began or last caught up: only those that lag
behind remember how far they have come. Mended in 3.5.8 ("etcd might send duplicated events to watch
clients", "Watch response traveling back in time when reconnecting member downloads snapshot from
the leader"). Its own kind seldom sends such a member a snapshot, as they keep 5,000 entries for
those who are late; ours do, and etcd 3.6, when they are told to keep fewer. The proof is
``tests/interop/test_old_watches.py``."""

ORDERS_NOTICES_FROM: Final[Release] = (3, 5, 8)
"""Before, the notice that a client asks for goes to it past the events that wait to be sent, and
says that they have come (etcd-io/etcd#15220). The proof is ``tests/interop/test_old_watches.py``,
too."""

TOLD: Final = 6
"""How much of a member's life a verdict tells."""


@dataclass(slots=True)
class Serving:
    """A member at work on one watch, from ``begin`` until ``end``.

    ``log_begin`` and ``log_end`` are the sizes that the member's log then had.
    """

    member: str
    release: Release
    ours: bool
    log: Path
    life: Life
    begin: float
    log_begin: int = 0
    end: float = math.inf
    log_end: int | None = None

    def close(self) -> None:
        self.end, self.log_end = time.monotonic(), self.log.stat().st_size

    def installed(self) -> int:
        """How many snapshots were installed on it meanwhile, by its own word."""
        with self.log.open("rb") as log:
            log.seek(self.log_begin)
            size = -1 if self.log_end is None else self.log_end - self.log_begin
            return log.read(size).count(b'"applying snapshot"')

    def resends(self) -> int:
        """How often its release is known to go back in the watch: see `RESENDS_BEFORE`."""
        known = not self.ours and self.release < RESENDS_BEFORE
        return self.installed() if known else 0

    def orders_notices(self) -> bool:
        """Whether a notice that was asked for can be believed: see `ORDERS_NOTICES_FROM`."""
        return self.ours or self.release >= ORDERS_NOTICES_FROM

    def __str__(self) -> str:
        kind = "Kvorum" if self.ours else "etcd " + ".".join(map(str, self.release))
        before = [f"{at:.2f} {what}" for at, what in self.life if at <= self.end][-TOLD:]
        return (
            f"{self.member} ({kind}) from {self.begin:.2f} to {self.end:.2f};"
            f" snapshots installed on it meanwhile: {self.installed()};"
            f" its last: {', '.join(before) or 'nothing'}"
        )


def without_resent(watch: Watch, times: int) -> Watch:
    """The watch as if its member had not gone back so many times.

    Going back is to send again, in the same order and one after the other, what had come from some
    event on. Whatever comes again more often, in another order, or changed, stays.
    """
    if not times:
        return watch
    resent = _Resent(times)
    responses: list[Response] = []
    for response in watch.responses:
        events = tuple(event for event in response.events if not resent.is_next(event))
        if events or not response.events:
            responses.append(replace(response, events=events))
        elif responses and responses[-1].fragment and not response.fragment:
            responses[-1] = replace(responses[-1], fragment=False)  # the last fragment is gone
    return replace(watch, responses=responses)


class _Resent:
    """Tells events that come again from others, as they come."""

    def __init__(self, times: int) -> None:
        self._left = times
        self._places: dict[tuple[object, ...], int] = {}
        self._at = -1

    def is_next(self, event: Event) -> bool:
        what = (event.kind, event.kv)
        again = what in self._places
        place = self._places.setdefault(what, len(self._places))
        if again and place != self._at + 1:
            self._left -= 1
        self._at = place
        return again and self._left >= 0
