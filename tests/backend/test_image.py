"""A database file that is read as it is, while it is written to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kvorum.backend import Backend, Bucket, CorruptError, ViewLostError
from kvorum.backend.database import Database
from kvorum.backend.image import Image, image_value, is_image

RECORDS = {i.to_bytes(8, "big") + b"_" + bytes(8): b"%d" % i * 300 for i in range(3000)}


def run(folder: Path, scenario: Callable[[Backend], Awaitable[None]]) -> None:
    async def work() -> None:
        backend = Backend(folder / "kvorum.mdb", loop=asyncio.get_running_loop())
        try:
            async with asyncio.timeout(30):
                await scenario(backend)
        finally:
            backend.close()

    asyncio.run(work())


async def fill(backend: Backend) -> None:
    for rev, record in RECORDS.items():
        backend.put_revision(rev, record)
    backend.put("meta", b"name", b"first")
    backend.put("authUsers", b"u" * 600, b"long")
    await backend.commit()


def rest_of(image: Image) -> bytes:
    pieces = []
    while piece := image.read(100_000):
        pieces.append(piece)
    return b"".join(pieces)


def content(path: Path) -> dict[str, dict[bytes, bytes]]:
    database = Database(path)
    try:
        with database.env.begin() as txn:
            return {
                bucket.value: dict(txn.cursor(database.dbs[bucket]).iternext()) for bucket in Bucket
            }
    finally:
        database.close()


def test_it_holds_what_was_written_when_it_was_asked_for(tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    async def scenario(backend: Backend) -> None:
        await fill(backend)
        image = await backend.image()
        first = image.read(1)
        for round_ in range(5):  # both metas, and every page that was free, are written anew
            for rev in RECORDS:
                backend.put_revision(rev, b"%d" % round_ * 500)
            backend.put("meta", b"name", b"later")
            await backend.commit()
        copy.write_bytes(first + rest_of(image))
        assert copy.stat().st_size == image.size
        image.close()

    run(tmp_path, scenario)
    assert is_image(copy)
    found = content(copy)
    assert found["key"] == RECORDS
    assert found["meta"] == {b"name": b"first"}
    assert image_value(copy, Bucket.META, b"name") == b"first"
    assert image_value(copy, Bucket.META, b"other") is None
    assert image_value(copy, Bucket.AUTH_USERS, b"u" * 600) == b"long"


def test_what_was_not_committed_is_in_it(tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    async def scenario(backend: Backend) -> None:
        backend.put("meta", b"name", b"new")
        image = await backend.image()
        copy.write_bytes(rest_of(image))
        image.close()

    run(tmp_path, scenario)
    assert content(copy)["meta"] == {b"name": b"new"}


def test_a_copy_is_written_to_like_any_other(tmp_path: Path) -> None:
    """Twice, so that each of the two metas was replaced; and its free pages are known."""
    copy = tmp_path / "copy"

    async def take(backend: Backend) -> None:
        await fill(backend)
        backend.delete_revisions(list(RECORDS)[:2000])
        await backend.commit()
        backend.put("meta", b"name", b"second")  # one more, so that the other meta is the newest
        image = await backend.image()
        copy.write_bytes(rest_of(image))
        image.close()

    run(tmp_path, take)
    size = copy.stat().st_size
    folder = tmp_path / "second"
    folder.mkdir()
    copy.rename(folder / "kvorum.mdb")

    async def write(backend: Backend) -> None:
        for name in (b"a", b"b", b"c"):
            for rev in list(RECORDS)[:1000]:
                backend.put_revision(rev, name * 300)
            backend.put("meta", name, name)
            await backend.commit()

    run(folder, write)
    found = content(folder / "kvorum.mdb")
    assert found["meta"] == {b"a": b"a", b"b": b"b", b"c": b"c", b"name": b"second"}
    expected = dict.fromkeys(list(RECORDS)[:1000], b"c" * 300)
    assert found["key"] == expected | dict(list(RECORDS.items())[2000:])
    assert (folder / "kvorum.mdb").stat().st_size <= size * 1.1


def test_a_view_that_was_lost_ends_it(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        await fill(backend)
        image = await backend.image()
        image.read(1)
        backend.database.lose_views()
        with pytest.raises(ViewLostError):
            image.read(1000)
        image.close()

    run(tmp_path, scenario)


def test_no_view_and_no_file_stays_open(tmp_path: Path) -> None:
    async def scenario(backend: Backend) -> None:
        await fill(backend)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            image = await backend.image()
            image.read(1)
            image.close()
            image.close()
        assert len(os.listdir("/proc/self/fd")) == before
        assert backend.database.views == 0

    run(tmp_path, scenario)


@pytest.mark.parametrize("kept", [0, 10, 5000, 9000])
def test_what_is_cut_off_is_no_image(tmp_path: Path, kept: int) -> None:
    async def scenario(backend: Backend) -> None:
        await fill(backend)

    run(tmp_path, scenario)
    path = tmp_path / "kvorum.mdb"
    os.truncate(path, kept)
    assert is_image(path) == (kept > 16)
    with pytest.raises(CorruptError, match="no whole LMDB file"):
        image_value(path, Bucket.META, b"name")


def test_garbage_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(b"x" * 100_000)
    assert not is_image(path)
    with pytest.raises(CorruptError, match="no whole LMDB file"):
        image_value(path, Bucket.META, b"name")
