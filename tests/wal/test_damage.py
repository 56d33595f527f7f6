"""Damaged copies of a log: what an interrupted write explains is repaired, all else is refused."""

from __future__ import annotations

import random
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from kvorum import wal
from kvorum.raft.types import Entry, EntryType, HardState
from kvorum.wal import WAL, open_log

SEGMENT = 20_000
CASES = 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three segments, the last one half full."""
    directory = tmp_path_factory.mktemp("sound") / "wal"
    log = WAL.create(directory, b"meta", segment_size=SEGMENT)
    draw = random.Random(0)
    for index in range(1, 61):
        data = bytes(draw.randrange(1, 256) for _ in range(draw.randrange(20, 1600)))
        log.write(log.encode(HardState(1, 1, index), [Entry(1, index, EntryType.NORMAL, data)]))
    log.close()
    return directory


class Copy:
    """A copy of the log whose last segment can be damaged."""

    def __init__(self, sound: Path, directory: Path) -> None:
        shutil.copytree(sound, directory)
        self.directory = directory
        self.tail = max(directory.glob("*.wal"))
        self.content = bytearray(self.tail.read_bytes())
        self.ends = _frame_ends(self.content)
        """Offsets at which a record ends."""
        self.used = self.ends[-1]

    def save(self) -> None:
        self.tail.write_bytes(self.content)

    def open(self) -> list[Entry]:
        log, result = open_log(self.directory, segment_size=SEGMENT)
        log.close()
        return result.entries


def _frame_ends(content: bytes) -> list[int]:
    ends, at = [], 0
    while at < len(content) and (word := int.from_bytes(content[at : at + 8], "little")):
        length = word & (1 << 56) - 1
        at += 8 + length + -length % 8
        ends.append(at)
    return ends


@pytest.fixture(params=range(CASES))
def case(request: pytest.FixtureRequest, sound: Path, tmp_path: Path) -> tuple[Copy, random.Random]:
    return Copy(sound, tmp_path / "wal"), random.Random(request.param)


def whole(entries: list[Entry], sound: Path) -> list[Entry]:
    """The entries must be the first ones of the sound log, unchanged."""
    expected = wal.read_log(sound).entries
    assert entries == expected[: len(entries)]
    return expected


def test_a_log_cut_off_anywhere_is_repaired(case: tuple[Copy, random.Random], sound: Path) -> None:
    copy, draw = case
    end = draw.randrange(copy.used)
    before = bytes(copy.content[:end])
    del copy.content[end:]
    copy.save()
    entries = copy.open()
    whole(entries, sound)
    kept = max((e for e in copy.ends if e <= end), default=0)
    broken = copy.tail.with_name(f"{copy.tail.name}.broken")
    if kept == end:
        assert not broken.exists()
    else:
        assert broken.read_bytes() == before
        assert copy.tail.read_bytes()[:kept] == before[:kept]
    assert copy.open() == entries


def test_a_tail_of_zeros_is_cut_back(case: tuple[Copy, random.Random], sound: Path) -> None:
    """Sectors that were never written read as zeros."""
    copy, draw = case
    start = draw.randrange(copy.used // 512) * 512
    copy.content[start : copy.used] = bytes(copy.used - start)
    copy.save()
    entries = copy.open()
    whole(entries, sound)
    copy.open()


def test_a_flipped_bit_in_the_data_is_refused(case: tuple[Copy, random.Random]) -> None:
    copy, draw = case
    frames = [(start, end) for start, end in pairwise(copy.ends) if end - start > 40]
    start, end = draw.choice(frames)
    start, end = start + 8 + 14, end - 8
    copy.content[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
    copy.save()
    before = copy.tail.read_bytes()
    with pytest.raises(wal.CRCMismatch, match="has checksum"):
        copy.open()
    with pytest.raises(wal.CorruptLog):
        wal.repair(copy.directory)
    assert copy.tail.read_bytes() == before


def test_any_flipped_byte_is_noticed(case: tuple[Copy, random.Random], sound: Path) -> None:
    """In a length word too; only a byte after the end, or of padding, does not matter."""
    copy, draw = case
    position = draw.randrange(copy.used)
    copy.content[position] ^= draw.randrange(1, 256)
    copy.save()
    try:
        entries = copy.open()
    except wal.CorruptLog:
        return
    expected = whole(entries, sound)
    assert len(expected) - len(entries) < 60


def test_junk_after_the_end_disappears(case: tuple[Copy, random.Random], sound: Path) -> None:
    copy, draw = case
    size = len(copy.content)
    assert size > copy.used + 8
    start = draw.randrange(copy.used + 8, size - 1)
    copy.content[start:] = draw.randbytes(size - start)
    copy.save()
    assert copy.open() == wal.read_log(sound).entries
    content = copy.tail.read_bytes()
    assert len(content) == size
    assert not any(content[copy.used :])


def test_junk_right_after_the_end(case: tuple[Copy, random.Random], sound: Path) -> None:
    """A length word of junk asks for more than there is, or it is no record: never a hang."""
    copy, draw = case
    junk = draw.randbytes(draw.randrange(1, 200))
    copy.content[copy.used : copy.used + len(junk)] = junk
    copy.save()
    try:
        entries = copy.open()
    except wal.CorruptLog:
        return
    assert entries == wal.read_log(sound).entries


def test_damage_in_an_earlier_segment_is_never_taken_for_a_torn_write(
    sound: Path, tmp_path: Path
) -> None:
    copy = Copy(sound, tmp_path / "wal")
    first = min(copy.directory.glob("*.wal"))
    content = bytearray(first.read_bytes())
    content[8192:9728] = bytes(1536)
    first.write_bytes(content)
    with pytest.raises(wal.CorruptLog):
        copy.open()
    assert not list(copy.directory.glob("*.broken"))


def test_an_earlier_segment_that_ends_early(sound: Path, tmp_path: Path) -> None:
    """Nothing to repair in the last one, so the second attempt says what is wrong."""
    copy = Copy(sound, tmp_path / "wal")
    first = min(copy.directory.glob("*.wal"))
    first.write_bytes(first.read_bytes()[:-20])
    with pytest.raises(wal.UnexpectedEOF, match=first.name):
        copy.open()


def test_a_tool_reads_up_to_the_torn_end(sound: Path, tmp_path: Path) -> None:
    copy = Copy(sound, tmp_path / "wal")
    del copy.content[copy.ends[-2] - 3 :]
    copy.save()
    before = copy.tail.read_bytes()
    entries = wal.read_log(copy.directory).entries
    whole(entries, sound)
    assert wal.valid_snapshots(copy.directory) == [wal.START]
    assert copy.tail.read_bytes() == before
