"""When to compact without being asked: ``--auto-compaction-mode`` and ``-retention``.

Both policies are told the time and the revision, and answer with the revision to compact at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from kvorum import errors
from kvorum.log import get_logger
from kvorum.types import Revision

HOUR: Final = 3600.0
REVISION_INTERVAL: Final = 300.0
_SAMPLES: Final = 10

lg = get_logger()


class Policy(Protocol):
    interval: float
    """Seconds between two questions."""

    def due(self, now: float, current: Revision) -> Revision | None:
        """The revision to compact at, if it is time."""
        ...

    def done(self, now: float, revision: Revision) -> None:
        """A compaction at this revision succeeded, or had been done already."""
        ...


class PeriodicPolicy:
    """Keeps the history of a period: revisions are noted ten times a period (or an hour, if that is
    shorter), and the oldest noted one is compacted at once a period (or an hour).

    Nothing happens in the first whole period.
    """

    def __init__(self, period: float, now: float, current: Revision) -> None:
        assert period > 0, period
        self.interval = min(period, HOUR) / _SAMPLES
        self._period = period
        self._noted: deque[Revision] = deque(maxlen=int(period / self.interval) + 1)
        self._wait = period
        self._last_success = now
        self._last: Revision | None = None
        self._noted.append(current)

    def due(self, now: float, current: Revision) -> Revision | None:
        oldest = self._noted[0]
        self._noted.append(current)
        # Timers fire a little early now and then; that must not cost a whole interval.
        early = now - self._last_success < self._wait - self.interval / 2
        if early or oldest == self._last:
            return None
        self._wait = min(self._period, HOUR)
        return oldest

    def done(self, now: float, revision: Revision) -> None:
        self._last = revision
        self._last_success = now


class RevisionPolicy:
    """Keeps a number of revisions, looking every five minutes."""

    interval = REVISION_INTERVAL

    def __init__(self, retention: int) -> None:
        assert retention > 0, retention
        self._retention = retention
        self._last = Revision(0)

    def due(self, now: float, current: Revision) -> Revision | None:
        revision = Revision(current - self._retention)
        return revision if revision > 0 and revision != self._last else None

    def done(self, now: float, revision: Revision) -> None:
        self._last = revision


class Compactable(Protocol):
    """The server, as far as automatic compaction is concerned."""

    def now(self) -> float: ...
    def revision(self) -> Revision: ...
    def is_leader(self) -> bool: ...
    def compact(self, revision: Revision, done: Callable[[str], None]) -> None: ...


class AutoCompactor:
    """Asks the policy every ``interval`` seconds, and proposes what it answers, as the leader."""

    def __init__(self, policy: Policy, mode: str, server: Compactable) -> None:
        self.interval = policy.interval
        self._policy = policy
        self._mode = mode
        self._server = server

    @classmethod
    def of(cls, mode: str, retention: float, server: Compactable) -> AutoCompactor | None:
        """For ``--auto-compaction-mode`` and how much to keep: seconds or revisions; None for 0."""
        if not retention:
            return None
        policy: Policy = (
            RevisionPolicy(int(retention))
            if mode == "revision"
            else PeriodicPolicy(retention, server.now(), server.revision())
        )
        return cls(policy, mode, server)

    def check(self) -> None:
        server = self._server
        revision = self._policy.due(server.now(), server.revision())
        if revision is None or not server.is_leader():
            return
        lg.info(f"starting auto {self._mode} compaction", revision=revision)
        server.compact(revision, lambda error: self._compacted(revision, error))

    def _compacted(self, revision: Revision, error: str) -> None:
        if error and error != errors.Compacted.message:
            lg.warn(f"failed auto {self._mode} compaction", revision=revision, error=error)
            return
        self._policy.done(self._server.now(), revision)
        lg.info(f"completed auto {self._mode} compaction", revision=revision)
