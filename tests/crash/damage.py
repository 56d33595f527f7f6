"""Ways in which the last log file can be damaged, each as a crash or a bad disk would do it."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.walfile import ENTRY, Frame, make_frame, read_frames

from kvorum.pb import raftpb

Damager = Callable[["LogFile"], None]


class LogFile:
    """The last segment of a copied folder, and where its records lie."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.rng = rng
        self.frames = read_frames(path)

    @property
    def end(self) -> int:
        return self.frames[-1].end

    def entries(self) -> list[Frame]:
        """Entry records with a payload, beyond the first few of the member's own start."""
        return [frame for frame in self.frames if frame.kind == ENTRY and len(frame.data) > 20][8:]

    def write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def flip(self, at: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x20]))

    def cut(self, size: int) -> None:
        with self.path.open("r+b") as file:
            file.truncate(size)

    def next_frame(self, size: int = 100) -> bytes:
        """A sound frame that could come next: an entry that was never committed."""
        last = raftpb.Entry.FromString(self.entries()[-1].data)
        entry = raftpb.Entry(Term=last.Term, Index=last.Index + 1, Data=b"x" * size)
        return make_frame(self.frames[-1].crc, ENTRY, entry.SerializeToString())


@dataclass(frozen=True, slots=True)
class Damage:
    """``keeps``: nothing acknowledged is touched, so a server that serves must have it all."""

    name: str
    do: Damager
    keeps: bool = False


def torn_length_word(log: LogFile) -> None:
    log.write(log.end, log.next_frame()[:5])


def torn_record(log: LogFile) -> None:
    """Cut off where a sector ends: a disk writes sectors whole. Cut within one, a record would be
    taken for torn or for corrupt by where its end happens to lie, which differs between the logs
    that are compared."""
    rest_of_sector = -log.end % 512
    log.write(log.end, log.next_frame(1200)[: rest_of_sector + 512])


def torn_large_record(log: LogFile) -> None:
    """Several sectors long; the later ones never reached the disk."""
    log.write(log.end, log.next_frame(4000)[:1500])


def torn_in_the_middle(log: LogFile) -> None:
    """A sector within the record is missing, those around it are there."""
    frame = bytearray(log.next_frame(4000))
    hole = -log.end % 512 + 1024
    frame[hole : hole + 512] = bytes(512)
    log.write(log.end, bytes(frame))


def torn_at_the_file_end(log: LogFile) -> None:
    log.cut(log.end)
    log.write(log.end, log.next_frame()[:40])


def file_cut_after_the_last_record(log: LogFile) -> None:
    log.cut(log.end)


def junk_after_a_gap(log: LogFile) -> None:
    log.write(log.end + 64, log.rng.randbytes(200))


def wrong_crc_at_the_end(log: LogFile) -> None:
    frame = bytearray(log.next_frame())
    frame[-20] ^= 0x20
    log.write(log.end, bytes(frame))


def junk_length_word(log: LogFile) -> None:
    log.write(log.end, b"\x01\x02\x03\x04\x05\x06\x07\x00" + b"\xaa" * 64)


def flip_in_the_last_entry(log: LogFile) -> None:
    frame = log.entries()[-1]
    log.flip(frame.end - 16)


def flip_in_the_middle(log: LogFile) -> None:
    entries = log.entries()
    frame = entries[len(entries) // 2]
    log.flip(frame.end - 16)


def garble_the_middle(log: LogFile) -> None:
    entries = log.entries()
    frame = entries[len(entries) // 2]
    log.write(frame.start + 8, b"\xa5" * 120)


def cut_inside_the_last_entry(log: LogFile) -> None:
    frame = log.entries()[-1]
    log.cut(frame.start + 20)


def cut_between_records(log: LogFile) -> None:
    entries = log.entries()
    log.cut(entries[len(entries) * 3 // 4].start)


def cut_anywhere(log: LogFile) -> None:
    log.cut(log.rng.randrange(log.entries()[0].start, log.end))


def zero_the_last_entries(log: LogFile) -> None:
    entries = log.entries()
    start = entries[-3].start
    log.write(start, bytes(log.end - start))


def zero_a_length_word_in_the_middle(log: LogFile) -> None:
    """Everything behind it looks unwritten."""
    entries = log.entries()
    log.write(entries[len(entries) // 2].start, bytes(8))


def empty_file(log: LogFile) -> None:
    log.cut(0)


def no_file(log: LogFile) -> None:
    log.path.unlink()


DAMAGES = [
    Damage("torn length word", torn_length_word, keeps=True),
    Damage("torn record", torn_record, keeps=True),
    Damage("torn large record", torn_large_record, keeps=True),
    Damage("torn in the middle", torn_in_the_middle, keeps=True),
    Damage("torn at the file end", torn_at_the_file_end, keeps=True),
    Damage("file cut after the last record", file_cut_after_the_last_record, keeps=True),
    Damage("junk after a gap", junk_after_a_gap, keeps=True),
    Damage("wrong crc at the end", wrong_crc_at_the_end, keeps=True),
    Damage("junk length word", junk_length_word, keeps=True),
    Damage("flip in the last entry", flip_in_the_last_entry),
    Damage("flip in the middle", flip_in_the_middle),
    Damage("garble the middle", garble_the_middle),
    Damage("cut inside the last entry", cut_inside_the_last_entry),
    Damage("cut between records", cut_between_records),
    Damage("cut anywhere", cut_anywhere),
    Damage("zero the last entries", zero_the_last_entries),
    Damage("zero a length word in the middle", zero_a_length_word_in_the_middle),
    Damage("empty file", empty_file),
    Damage("no file", no_file),
]


def copy_folder(source: Path, target: Path) -> None:
    """A copy without the preallocated zeros being written out."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", "--sparse=always", str(source), str(target)], check=True)
