"""A database written at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import google_crc32c
import lmdb
import pytest

from kvorum.backend import Backend, Bucket, CommitError
from kvorum.backend import bulk as bulk_module
from kvorum.backend.bulk import Batch, write_database
from kvorum.backend.database import Database
from kvorum.backend.hash import hash_view


def items() -> Iterator[tuple[str, bytes, bytes]]:
    for i in range(3000):
        yield "key", b"%017d" % i, b"v" * 300
    yield "authUsers", b"u" * 600, b"user"
    yield "meta", b"consistent_index", bytes(8)


def batches() -> Iterator[Batch]:
    for bucket, group in groupby(items(), key=lambda item: item[0]):
        pairs = [(key, value) for _, key, value in group]
        for start in range(0, len(pairs), 70):
            yield Bucket(bucket), pairs[start : start + 70]


@pytest.mark.parametrize("batch", [50_000, 32 << 20])
def test_everything_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(bulk_module, "BATCH_BYTES", batch)
    path = tmp_path / "new.mdb"
    write_database(path, batches())
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    backend = Backend(path)
    found = [(b, k, v) for b in Bucket for k, v in backend.range(b, b"", None)]
    assert sorted(found) == sorted(items())
    backend.close()


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new.mdb"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_database(path, batches())
    assert path.read_bytes() == b"mine"


def test_what_cannot_be_finished_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Batch]:
        yield Bucket.KEY, [(b"a", b"b")]
        raise ValueError("the source is damaged")

    with pytest.raises(ValueError, match="the source is damaged"):
        write_database(tmp_path / "new.mdb", broken())
    assert list(tmp_path.iterdir()) == []

    def fail(*_: object) -> None:
        raise lmdb.DiskError("mdb_txn_commit: No space left on device", 28)

    monkeypatch.setattr(Database, "append", fail)
    with pytest.raises(CommitError, match="No space left"):
        write_database(tmp_path / "new.mdb", batches())
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_map_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "Database", lambda path: Database(path, map_size=256 << 10))
    write_database(tmp_path / "new.mdb", batches())
    backend = Backend(tmp_path / "new.mdb")
    assert len(backend.range("key", b"", None)) == 3000
    backend.close()


def test_revisions_out_of_order_are_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new.mdb"
    write_database(path, [(Bucket.KEY, [(b"c", b"3"), (b"a", b"1")]), (Bucket.KEY, [(b"b", b"2")])])
    backend = Backend(path)
    assert backend.range("key", b"", None) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    backend.close()


def test_the_hash_goes_over_buckets_by_name_and_whole_keys(tmp_path: Path) -> None:
    write_database(tmp_path / "new.mdb", batches())
    backend = Backend(tmp_path / "new.mdb")
    with backend.read_view() as view:
        skipped, full = hash_view(view), hash_view(view, frozenset())
    backend.close()
    crc = everything = 0
    for bucket in sorted(Bucket):
        pairs = sorted((k, v) for name, k, v in items() if name == bucket)
        data = b"".join(key + value for key, value in pairs)
        everything = google_crc32c.extend(everything, bucket.encode() + data)
        crc = google_crc32c.extend(crc, bucket.encode() + (b"" if bucket == "meta" else data))
    assert (skipped, full) == (crc, everything)
