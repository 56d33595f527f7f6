"""Whether a peer can be spoken with, and since when."""

from __future__ import annotations

from collections.abc import Callable

from kvorum.log import Logger
from kvorum.telemetry import PeerMetrics
from kvorum.types import MemberID


class PeerStatus:
    """A peer is active from the first thing that works until the next that fails, as in etcd."""

    def __init__(
        self,
        local: MemberID,
        peer: MemberID,
        metrics: PeerMetrics,
        clock: Callable[[], float],
        lg: Logger,
    ) -> None:
        self.since: float | None = None
        """Loop time."""
        self._peer = f"{peer:x}"
        self._clock = clock
        self._lg = lg
        self._labels = (f"{local:x}", self._peer)
        self._active = metrics.active.with_labels(*self._labels)
        self._disconnected = metrics.disconnected.with_labels(*self._labels)

    @property
    def active(self) -> bool:
        return self.since is not None

    def activate(self) -> None:
        if self.since is None:
            self.since = self._clock()
            self._active.value = 1
            self._lg.info("peer became active", peer_id=self._peer)

    def deactivate(self, action: str, source: str, reason: object) -> None:
        """``action`` (dial, read, write, post) failed on ``source``, a stream or the pipeline."""
        error = f"failed to {action} {self._peer} on {source} ({reason})"
        if self.since is None:
            self._lg.debug("peer deactivated again", peer_id=self._peer, error=error)
            return
        self.since = None
        self._active.value = 0
        self._disconnected.value += 1
        self._lg.warn(
            "peer became inactive (message send to peer failed)", peer_id=self._peer, error=error
        )

    def stop(self) -> None:
        """The peer is spoken with no more; that is no failure."""
        self.since = None
        self._active.value = 0
