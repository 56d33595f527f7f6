"""Whether a leader's heartbeats leave on time; late ones are what unneeded elections come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from kvorum.log import get_logger
from kvorum.raft.types import Message, MsgType
from kvorum.telemetry import Counter
from kvorum.types import MemberID

lg = get_logger()


class HeartbeatWatch:
    """``interval``: seconds between heartbeats. Twice that is late, as in etcd."""

    def __init__(self, interval: float, clock: Callable[[], float], late: Counter) -> None:
        self._interval = interval
        self._clock = clock
        self._late = late
        self._sent: dict[MemberID, float] = {}

    def reset(self) -> None:
        """There is another leader: what was sent before is of no meaning."""
        self._sent.clear()

    def sending(self, messages: Sequence[Message]) -> None:
        """These messages leave now."""
        for message in messages:
            if message.type is MsgType.HEARTBEAT:
                self._observe(message.to)

    def _observe(self, member: MemberID) -> None:
        now = self._clock()
        before = self._sent.get(member, now)
        self._sent[member] = now
        exceeded = now - before - 2 * self._interval
        if exceeded > 0:
            self._late.value += 1
            lg.warn(
                "leader failed to send out heartbeat on time; took too long, leader is overloaded"
                " likely from slow disk",
                to=f"{member:x}",
                heartbeat_interval=timedelta(seconds=self._interval),
                expected_duration=timedelta(seconds=2 * self._interval),
                exceeded_duration=timedelta(seconds=exceeded),
            )
