from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvorum.alarm import AlarmStore, alarm_name
from kvorum.pb import etcdserverpb as pb
from kvorum.types import MemberID

ONE, TWO = MemberID(1), MemberID(2**64 - 1)


class Buckets:
    """The bucket ``alarm`` as a dict, and how often it was written."""

    def __init__(self) -> None:
        self.alarms: dict[bytes, bytes] = {}
        self.writes = 0

    def put(self, bucket: str, key: bytes, value: bytes) -> None:
        assert (bucket, value) == ("alarm", b"")
        self.alarms[key] = value
        self.writes += 1

    def delete(self, bucket: str, key: bytes) -> None:
        assert bucket == "alarm"
        del self.alarms[key]
        self.writes += 1

    def range(self, bucket: str, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        assert (bucket, lo, hi) == ("alarm", b"", None)
        return iter(sorted(self.alarms.items()))


@pytest.fixture
def buckets() -> Buckets:
    return Buckets()


@pytest.fixture
def store(buckets: Buckets) -> AlarmStore:
    return AlarmStore(buckets)


def pairs(alarms: list[pb.AlarmMember]) -> list[tuple[int, int]]:
    return [(alarm.alarm, alarm.memberID) for alarm in alarms]


def test_none_is_on_at_first(store: AlarmStore) -> None:
    assert store.get() == []
    assert not store.is_on(pb.NOSPACE)
    assert store.deactivate(ONE, pb.NOSPACE) is None


def test_a_record_is_the_alarm_as_key(store: AlarmStore, buckets: Buckets) -> None:
    store.activate(ONE, pb.NOSPACE)
    assert list(buckets.alarms) == [b"\x08\x01\x10\x01"]
    store.activate(TWO, pb.CORRUPT)
    assert pb.AlarmMember.FromString(sorted(buckets.alarms)[1]) == pb.AlarmMember(
        memberID=TWO, alarm=pb.CORRUPT
    )


def test_an_alarm_that_is_on_is_not_written_again(store: AlarmStore, buckets: Buckets) -> None:
    first = store.activate(ONE, pb.NOSPACE)
    assert store.activate(ONE, pb.NOSPACE) == first
    assert buckets.writes == 1


def test_each_member_has_alarms_of_its_own(store: AlarmStore) -> None:
    store.activate(TWO, pb.NOSPACE)
    store.activate(ONE, pb.NOSPACE)
    store.activate(ONE, pb.CORRUPT)
    assert pairs(store.get()) == [(pb.NOSPACE, ONE), (pb.NOSPACE, TWO), (pb.CORRUPT, ONE)]
    assert pairs(store.get(pb.NOSPACE)) == [(pb.NOSPACE, ONE), (pb.NOSPACE, TWO)]
    gone = store.deactivate(ONE, pb.NOSPACE)
    assert gone == pb.AlarmMember(memberID=ONE, alarm=pb.NOSPACE)
    assert store.is_on(pb.NOSPACE)  # the other one's
    store.deactivate(TWO, pb.NOSPACE)
    assert not store.is_on(pb.NOSPACE)
    assert store.is_on(pb.CORRUPT)


def test_taking_back_what_is_not_on_writes_nothing(store: AlarmStore, buckets: Buckets) -> None:
    store.activate(ONE, pb.NOSPACE)
    for member, kind in ((TWO, pb.NOSPACE), (ONE, pb.CORRUPT), (ONE, pb.NONE)):
        assert store.deactivate(member, kind) is None
    assert buckets.writes == 1
    assert pairs(store.get()) == [(pb.NOSPACE, ONE)]


def test_a_restored_store_is_the_same(store: AlarmStore, buckets: Buckets) -> None:
    store.activate(ONE, pb.CORRUPT)
    store.activate(TWO, pb.NOSPACE)
    store.activate(ONE, pb.NOSPACE)
    store.deactivate(ONE, pb.NOSPACE)
    again = AlarmStore(buckets)
    again.restore()
    assert again.get() == store.get()
    assert again.deactivate(TWO, pb.NOSPACE) is not None
    assert list(buckets.alarms) == [b"\x08\x01\x10\x02"]


def test_a_kind_of_a_later_version_is_kept(store: AlarmStore, buckets: Buckets) -> None:
    store.activate(ONE, 9)
    again = AlarmStore(buckets)
    again.restore()
    assert pairs(again.get(9)) == [(9, ONE)]
    assert again.is_on(9)


def test_names() -> None:
    assert [alarm_name(kind) for kind in (0, 1, 2, 3, -1)] == [
        "NONE",
        "NOSPACE",
        "CORRUPT",
        "3",
        "-1",
    ]
