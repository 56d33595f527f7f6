"""A backend's content as a bolt file: the same as written at once, and in bounded memory."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bolt_layout import read_bolt
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.backend import Backend, Bucket, ReadView, ViewLostError
from kvorum.backend.bulk import write_database
from kvorum.snap import BoltExport, BoltWriter, bolt_export

Content = dict[Bucket, dict[bytes, bytes]]

keys = st.binary(min_size=1, max_size=30)
contents = st.dictionaries(
    st.sampled_from(Bucket), st.dictionaries(keys, st.binary(max_size=2000), max_size=60)
)


def large() -> Content:
    """Three levels of branches, values longer than a page, keys longer than LMDB's."""
    draw = random.Random(5)
    revisions = {i.to_bytes(8, "big") + b"_" + bytes(8): draw.randbytes(60) for i in range(9000)}
    for key in list(revisions)[2000:2100]:
        revisions[key] = draw.randbytes(20_000)
    return {
        Bucket.KEY: revisions,
        Bucket.AUTH_USERS: {bytes([i]) * 600: b"user" for i in range(1, 200)},
        Bucket.META: {b"consistent_index": bytes(8)},
    }


def view_of(path: Path, content: Content) -> tuple[Backend, ReadView]:
    batches = [(bucket, sorted(items.items())) for bucket, items in content.items()]
    write_database(path, batches)
    backend = Backend(path)
    return backend, backend.read_view()


def exported(path: Path, content: Content, *, page_size: int) -> bytes:
    backend, view = view_of(path, content)
    with view:
        export = BoltExport(view, page_size=page_size, nap=lambda: None)
        size = export.size
        data = b"".join(export.pieces())
    backend.close()
    assert len(data) == size
    return data


def check(folder: Path, content: Content, page_size: int) -> None:
    data = exported(folder / "kvorum.mdb", content, page_size=page_size)
    with BoltWriter(folder / "db", page_size=page_size, sync=False) as writer:
        for bucket in sorted(Bucket):
            writer.add_bucket(bucket.encode(), sorted(content.get(bucket, {}).items()))
    assert data == (folder / "db").read_bytes()
    assert read_bolt(folder / "db") == {b.encode(): content.get(b, {}) for b in Bucket}


@settings(deadline=None, max_examples=25)
@given(contents, st.sampled_from([1024, 4096]))
def test_it_is_the_file_that_is_written_from_the_same_items(
    tmp_path_factory: pytest.TempPathFactory, content: Content, page_size: int
) -> None:
    check(tmp_path_factory.mktemp("export"), content, page_size)


@pytest.mark.parametrize("page_size", [1024, 4096])
def test_deep_trees_and_long_values(tmp_path: Path, page_size: int) -> None:
    check(tmp_path, large(), page_size)


def test_pieces_are_of_about_one_size(tmp_path: Path) -> None:
    backend, view = view_of(tmp_path / "kvorum.mdb", large())
    with view:
        sizes = [len(piece) for piece in BoltExport(view).pieces()]
    backend.close()
    assert sizes[0] == 2 * 4096
    assert all(bolt_export.PIECE <= size <= bolt_export.PIECE + (2 << 20) for size in sizes[1:-1])


def test_the_interpreter_is_left_to_others_now_and_then(tmp_path: Path) -> None:
    naps: list[None] = []
    backend, view = view_of(tmp_path / "kvorum.mdb", large())
    with view:
        export = BoltExport(view, nap=lambda: naps.append(None))
        counted = len(naps)
        for _ in export.pieces():
            pass
    backend.close()
    assert counted >= 9200 / bolt_export.CHUNK
    assert len(naps) == 2 * counted


def test_what_is_written_meanwhile_is_not_in_it(tmp_path: Path) -> None:
    backend, view = view_of(tmp_path / "kvorum.mdb", large())
    with view:
        export = BoltExport(view, nap=lambda: None)
        pieces = export.pieces()
        first = next(pieces)
        for i in range(9000):
            backend.delete("key", i.to_bytes(8, "big") + b"_" + bytes(8))
        backend.put("meta", b"new", b"1")
        backend.commit_now()
        (tmp_path / "db").write_bytes(first + b"".join(pieces))
    backend.close()
    expected = {b.encode(): large().get(b, {}) for b in Bucket}
    assert read_bolt(tmp_path / "db") == expected


def test_a_view_that_is_lost(tmp_path: Path) -> None:
    backend, view = view_of(tmp_path / "kvorum.mdb", large())
    pieces: Iterator[bytes] = BoltExport(view, nap=lambda: None).pieces()
    next(pieces)
    view.close()
    with pytest.raises(ViewLostError):
        list(pieces)
    backend.close()


_MEASURED = """
import sys
from pathlib import Path
from kvorum.backend import Backend
from kvorum.snap import BoltExport

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

backend = Backend(Path(sys.argv[1]))
view = backend.read_view()
before = peak()
size = sum(map(len, BoltExport(view, nap=lambda: None).pieces()))
print(size, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("value_size", [300, 1 << 20])
def test_memory_does_not_grow_with_the_database(tmp_path: Path, value_size: int) -> None:
    """Mapped pages of the file are memory too, for who looks from outside."""
    path = tmp_path / "kvorum.mdb"
    value = bytes(value_size)
    revisions = range((150 << 20) // value_size)
    write_database(
        path, ((Bucket.KEY, [(i.to_bytes(8, "big") + b"_" + bytes(8), value)]) for i in revisions)
    )
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(path)], capture_output=True, text=True, check=True
    )
    size, extra = map(int, done.stdout.split())
    assert size > 150 << 20
    assert extra < 50 << 10
