"""Bolt files: written and read back, taken apart by the layout, and damaged on purpose."""

from __future__ import annotations

import fcntl
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bolt_layout import read_bolt
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.snap import BoltError, BoltFile, BoltLocked, BoltWriter
from kvorum.snap.bolt import Meta, decode_meta, fnv1a

PAGE = 4096
Content = dict[bytes, dict[bytes, bytes]]


def write(path: Path, content: Content, *, page_size: int = PAGE) -> None:
    with BoltWriter(path, page_size=page_size, sync=False) as writer:
        for name, items in content.items():
            assert writer.add_bucket(name, sorted(items.items())) == len(items)


def read(path: Path) -> Content:
    with BoltFile(path) as file:
        content: Content = {name: {} for name in file.buckets()}
        for name, key, value in file.all_items():
            content[name][key] = value
        for name, items in content.items():
            assert list(file.items(name)) == sorted(items.items())
    return content


keys = st.binary(min_size=1, max_size=80)
buckets = st.dictionaries(keys, st.binary(max_size=300), max_size=40)


@settings(deadline=None)
@given(st.dictionaries(keys, buckets, max_size=6), st.sampled_from([1024, 4096, 65536]))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, content: Content, page_size: int
) -> None:
    path = tmp_path_factory.mktemp("bolt") / "db"
    write(path, content, page_size=page_size)
    assert read(path) == content == read_bolt(path)
    assert path.stat().st_size % page_size == 0


@pytest.fixture(scope="module")
def large() -> Content:
    """Three levels of branches with small pages, values longer than a page, long keys."""
    draw = random.Random(1)
    key = {i.to_bytes(8, "big") + b"_" + bytes(8): draw.randbytes(40) for i in range(20_000)}
    odd = {bytes([i]) * 900: draw.randbytes(20_000) for i in range(1, 40)}
    return {b"key": key, b"odd": odd, b"empty": {}, b"small": {b"a": b"b"}}


def test_deep_trees_and_overflow(tmp_path: Path, large: Content) -> None:
    path = tmp_path / "db"
    write(path, large, page_size=1024)
    assert read_bolt(path) == large
    assert read(path) == large


def test_pages_are_filled_to_nine_tenths(tmp_path: Path) -> None:
    path = tmp_path / "db"
    items = {i.to_bytes(4, "big"): bytes(100) for i in range(10_000)}
    write(path, {b"key": items})
    data = sum(16 + 4 + 100 for _ in items)
    assert 0.85 < data / path.stat().st_size < 0.91


def test_small_buckets_lie_within_the_root(tmp_path: Path) -> None:
    """Up to a quarter of a page, as bbolt does it."""
    path = tmp_path / "db"
    for extra, pages in ((0, 3), (1, 4)):
        write(path, {b"b": {b"k": bytes(PAGE // 4 - 16 - 16 - 1 + extra)}})
        assert path.stat().st_size == pages * PAGE
        read_bolt(path)
        path.unlink()


def test_both_metas_are_written(tmp_path: Path) -> None:
    path = tmp_path / "db"
    write(path, {b"key": {b"a": b"b"}})
    content = path.read_bytes()
    metas = [decode_meta(content[at + 16 : at + 80]) for at in (0, PAGE)]
    assert [meta.transaction for meta in metas] == [0, 1]
    assert metas[0]._replace(transaction=1) == metas[1]
    with BoltFile(path) as file:
        assert file.meta == metas[1]
        assert file.db_size == len(content)


def test_a_snapshot_may_end_in_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "db"
    write(path, {b"key": {b"a": b"b"}})
    path.write_bytes(path.read_bytes() + bytes(32))
    assert read(path) == {b"key": {b"a": b"b"}}


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([(b"b", b""), (b"a", b"")], "key b'a' after b'b'"),
        ([(b"a", b""), (b"a", b"")], "key b'a' after b'a'"),
        ([(b"", b"")], "key b'' after b''"),
        ([(b"k" * 32769, b"")], "32769 bytes key"),
    ],
)
def test_keys_that_bolt_does_not_take(
    tmp_path: Path, items: list[tuple[bytes, bytes]], why: str
) -> None:
    path = tmp_path / "db"
    with pytest.raises(ValueError, match=why), BoltWriter(path) as writer:
        writer.add_bucket(b"key", items)
    assert not path.exists()


def test_bucket_names(tmp_path: Path) -> None:
    with BoltWriter(tmp_path / "db") as writer:
        writer.add_bucket(b"key", [])
        with pytest.raises(ValueError, match="there already"):
            writer.add_bucket(b"key", [])
        with pytest.raises(ValueError, match="a bucket name of 0 bytes"):
            writer.add_bucket(b"", [])
    with pytest.raises(FileExistsError):
        BoltWriter(tmp_path / "db")
    with pytest.raises(ValueError, match="page size of 3000"):
        BoltWriter(tmp_path / "other", page_size=3000)
    assert not (tmp_path / "other").exists()


def test_items_that_fail_leave_nothing(tmp_path: Path) -> None:
    def items() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"b"
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError), BoltWriter(tmp_path / "db") as writer:
        writer.add_bucket(b"key", items())
    assert not (tmp_path / "db").exists()


def test_a_file_that_is_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "db"
    write(path, {b"key": {}})
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BoltLocked, match="open for writing"):
            BoltFile(path)
    BoltFile(path).close()


def test_the_whole_file_leaf_by_leaf(tmp_path: Path, large: Content) -> None:
    path = tmp_path / "db"
    write(path, large)
    with BoltFile(path) as file:
        got = [(bucket, *item) for bucket, items in file.batches() for item in items]
        assert file.pages_read > 0.99 * file.meta.high_water
    assert got == [(b, k, v) for b in sorted(large) for k, v in sorted(large[b].items())]


# What is wrong, one thing at a time.


class Patient:
    """A sound file with a branch over leaves, and tools to spoil it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: Content = {
            b"inline": {b"a": b"1", b"b": b"2"},
            b"key": {i.to_bytes(4, "big"): bytes(200) for i in range(200)},
        }
        write(path, self.content)
        self.data = bytearray(path.read_bytes())
        meta = decode_meta(self.data[PAGE + 16 : PAGE + 80])
        self.root, self.high = meta.root, meta.high_water
        self.branch = next(page for page in range(2, self.high) if self.get("H", page, 8) == 1)
        self.leaf = 2

    def get(self, form: str, page: int, at: int) -> int:
        return int(struct.unpack_from("<" + form, self.data, page * PAGE + at)[0])

    def set(self, form: str, page: int, at: int, value: int) -> None:
        struct.pack_into("<" + form, self.data, page * PAGE + at, value)

    def set_meta(self, **changes: int) -> None:
        for page in (0, 1):
            at = page * PAGE + 16
            meta = decode_meta(self.data[at : at + 64])._replace(**changes)
            self.data[at : at + 64] = meta.encode()

    def find(self, piece: bytes) -> int:
        return self.data.index(piece)


def _child(at: int, page: Callable[[Patient], int]) -> Callable[[Patient], None]:
    return lambda p: p.set("Q", p.branch, 16 + 16 * at + 8, page(p))


DAMAGE: dict[str, tuple[Callable[[Patient], None], str]] = {
    "a cycle": (_child(3, lambda p: p.branch), "is used twice"),
    "a child used twice": (_child(3, lambda p: p.leaf), "is used twice"),
    "a child in the metas": (_child(3, lambda p: 1), r"page 1 of \d+ is referred to"),
    "a child beyond the end": (_child(3, lambda p: p.high), r"page \d+ of \d+ is referred to"),
    "a child far beyond": (_child(3, lambda p: 1 << 63), "is referred to"),
    "the wrong id": (lambda p: p.set("Q", p.leaf, 0, 77), "page 2: it calls itself page 77"),
    "overflow beyond the end": (
        lambda p: p.set("I", p.leaf, 12, 0xFFFFFFFF),
        "4294967295 overflow pages reach beyond",
    ),
    "overflow into the next page": (lambda p: p.set("I", p.leaf, 12, 1), "page 3 is used twice"),
    "the flags of a freelist": (lambda p: p.set("H", p.leaf, 8, 0x10), "flags 0x10 within a tree"),
    "no flags": (lambda p: p.set("H", p.leaf, 8, 0), "flags 0x0 within a tree"),
    "an empty leaf below a branch": (lambda p: p.set("H", p.leaf, 10, 0), "an empty page below"),
    "too many elements": (lambda p: p.set("H", p.leaf, 10, 4000), "4000 elements do not fit"),
    "too many children": (lambda p: p.set("H", p.branch, 10, 65535), "65535 elements do not fit"),
    "an element beyond the page": (
        lambda p: p.set("I", p.leaf, 16 + 12, 5000),
        r"an element of 4 \+ 5000 bytes",
    ),
    "an element at a far place": (lambda p: p.set("I", p.leaf, 16 + 4, 1 << 31), "an element of"),
    "an element within the array": (lambda p: p.set("I", p.leaf, 16 + 4, 0), "an element of"),
    "elements that share their bytes": (
        lambda p: p.set("I", p.leaf, 32 + 4, p.get("I", p.leaf, 16 + 4) - 16 + 204 - 50),
        "an element of",
    ),
    "a key of a huge size": (lambda p: p.set("I", p.leaf, 16 + 8, 40000), "an element of 40000"),
    "keys out of order": (
        lambda p: p.set("B", p.leaf, 32 + p.get("I", p.leaf, 32 + 4), 0xFF),
        r"key b'.*' after b'.*'",
    ),
    "leaves out of order": (_child(0, lambda p: p.get("Q", p.branch, 16 + 16 + 8)), "after|twice"),
    "a bucket within a bucket": (lambda p: p.set("I", p.leaf, 16, 1), "a bucket within a bucket"),
    "a key at the root": (lambda p: p.set("I", p.root, 16, 0), "at the root is no bucket"),
    "an inline bucket of another kind": (
        lambda p: p.data.__setitem__(p.find(b"inline") + 6 + 16 + 8, 1),
        "an inline bucket with flags 0x1",
    ),
    "an inline bucket cut short": (lambda p: p.set("I", p.root, 16 + 12, 20), "an inline bucket"),
    "a bucket cut short": (lambda p: p.set("I", p.root, 16 + 12, 7), "bucket b'inline' is cut"),
    "a root in the metas": (lambda p: p.set_meta(root=1), "the root is page 1"),
    "a root beyond the end": (lambda p: p.set_meta(root=1 << 40), "the root is page"),
    "a high water mark beyond the file": (lambda p: p.set_meta(high_water=1 << 50), "ends after"),
    "a page size of 0": (lambda p: p.set_meta(page_size=0), "a page size of 0"),
    "a page size of 3000": (lambda p: p.set_meta(page_size=3000), "a page size of 3000"),
    "a file cut off": (lambda p: p.data.__delitem__(slice(-PAGE, None)), "the file ends after"),
    "an empty file": (lambda p: p.data.clear(), "the file ends inside the meta"),
    "no bolt file": (lambda p: p.data.__setitem__(slice(None), b"x" * 9000), "not a bolt file"),
    "another version": (lambda p: _both(p, 4, 3), "version 3 of the format"),
    "checksums of the metas": (lambda p: _both(p, 20, 9), "the checksum of the meta is wrong"),
}


def _both(patient: Patient, at: int, value: int) -> None:
    for page in (0, 1):
        patient.set("I", page, 16 + at, value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    patient = Patient(tmp_path / "db")
    assert read(patient.path) == patient.content
    spoil, why = DAMAGE[damage]
    spoil(patient)
    patient.path.write_bytes(patient.data)
    with pytest.raises(BoltError, match=why):
        read(patient.path)


def test_one_damaged_meta_is_not_needed(tmp_path: Path) -> None:
    patient = Patient(tmp_path / "db")
    for page in (0, 1):
        data = bytearray(patient.data)
        data[page * PAGE : page * PAGE + 200] = bytes(200)
        patient.path.write_bytes(data)
        assert read(patient.path) == patient.content


def test_the_newer_meta_counts(tmp_path: Path) -> None:
    patient = Patient(tmp_path / "db")
    for page in (0, 1):
        at = page * PAGE + 16
        meta = decode_meta(patient.data[at : at + 64])
        broken = Meta(meta.page_size, 1 << 40, meta.freelist, meta.high_water, meta.transaction)
        data = bytearray(patient.data)
        data[at : at + 64] = broken.encode()
        patient.path.write_bytes(data)
        if page == 0:  # the older one
            assert read(patient.path) == patient.content
        else:
            with pytest.raises(BoltError, match="the root is page"):
                read(patient.path)


def test_a_page_too_long_to_be_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    write(path, {b"key": {b"a": bytes(100_000)}})
    monkeypatch.setattr("kvorum.snap.bolt_reader.MAX_RUN", 50_000)
    with pytest.raises(BoltError, match="bytes long, at most 50000"):
        read(path)


def test_a_chain_of_branches(tmp_path: Path) -> None:
    """Sixty branches of one child each: no tree that anybody writes."""
    patient = Patient(tmp_path / "db")
    start = patient.high
    for page in range(start, start + 60):
        patient.data += struct.pack("<QHHI", page, 1, 1, 0)
        patient.data += struct.pack("<IIQ", 16, 4, page + 1 if page < start + 59 else patient.leaf)
        patient.data += bytes(PAGE - 32)
    patient.set_meta(root=start, high_water=start + 60)
    patient.path.write_bytes(patient.data)
    with pytest.raises(BoltError, match="more than 48 levels"):
        BoltFile(patient.path)


def test_too_many_buckets(tmp_path: Path) -> None:
    path = tmp_path / "db"
    write(path, {i.to_bytes(2, "big"): {} for i in range(4097)})
    with pytest.raises(BoltError, match="more than 4096 buckets"):
        BoltFile(path)


@pytest.mark.parametrize("seed", range(300))
def test_random_damage_never_hangs_or_surprises(tmp_path: Path, seed: int) -> None:
    """Any bytes changed: the file reads, perhaps with other values, or it is refused."""
    patient = Patient(tmp_path / "db")
    draw = random.Random(seed)
    for _ in range(draw.randrange(1, 6)):
        page = draw.choice([0, 1, patient.root, patient.branch, patient.leaf, patient.leaf + 1])
        at = page * PAGE + draw.randrange(16 * draw.randrange(1, 12))
        patient.data[at] = draw.randrange(256)
        if draw.random() < 0.3:
            for page in (0, 1):  # so that the damage gets past the checksum
                at = page * PAGE + 16
                patient.data[at + 56 : at + 64] = fnv1a(patient.data[at : at + 56]).to_bytes(
                    8, "little"
                )
    patient.path.write_bytes(patient.data)
    try:
        content = read(patient.path)
    except BoltError:
        return
    assert sum(map(len, content.values())) <= sum(map(len, patient.content.values()))


def test_the_checksum_is_fnv1a() -> None:
    assert fnv1a(b"") == 0xCBF29CE484222325
    assert fnv1a(b"foobar") == 0x85944171F73967E8
