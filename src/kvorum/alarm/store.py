"""The alarms that are on, in memory and in the ``alarm`` bucket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from kvorum.pb import etcdserverpb as pb
from kvorum.types import MemberID

_NAMES: Final[dict[int, str]] = {number: name for name, number in pb.AlarmType.items()}


def alarm_name(kind: int) -> str:
    """``NOSPACE``, ``CORRUPT``; for a kind that only a later version knows, its number."""
    return _NAMES.get(kind, str(kind))


class Buckets(Protocol):
    """What the store needs of the backend."""

    def put(self, bucket: str, key: bytes, value: bytes) -> None: ...
    def delete(self, bucket: str, key: bytes) -> None: ...
    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> Iterable[tuple[bytes, bytes]]: ...


class AlarmStore:
    """Alarms as (member, kind) pairs. A record of the bucket is the alarm as key, with no value."""

    def __init__(self, backend: Buckets) -> None:
        self._backend = backend
        self._active: dict[tuple[int, int], pb.AlarmMember] = {}

    def restore(self) -> None:
        """Replace everything by what the backend holds."""
        self._active.clear()
        for key, _ in self._backend.range("alarm", b"", None):
            alarm = pb.AlarmMember.FromString(key)
            self._active[alarm.alarm, alarm.memberID] = alarm

    def activate(self, member: MemberID, kind: int) -> pb.AlarmMember:
        """Raise an alarm; raising one that is on changes nothing."""
        known = self._active.get((kind, member))
        if known is not None:
            return known
        alarm = pb.AlarmMember(memberID=member, alarm=kind)  # type: ignore[arg-type]
        self._active[kind, member] = alarm
        self._backend.put("alarm", alarm.SerializeToString(), b"")
        return alarm

    def deactivate(self, member: MemberID, kind: int) -> pb.AlarmMember | None:
        """Take an alarm back; None if it was not on."""
        alarm = self._active.pop((kind, member), None)
        if alarm is not None:
            self._backend.delete("alarm", alarm.SerializeToString())
        return alarm

    def get(self, kind: int = 0) -> list[pb.AlarmMember]:
        """The alarms of a kind, or all for 0 (NONE), ordered by kind and member."""
        return [self._active[key] for key in sorted(self._active) if kind in (0, key[0])]

    def is_on(self, kind: int) -> bool:
        return any(key[0] == kind for key in self._active)
