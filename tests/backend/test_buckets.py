"""Keys of any length in the backend's buckets, in order, whatever LMDB can hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.backend import Backend, Bucket
from kvorum.backend.bucket import KEY_LIMIT, PREFIX, loaded_item, stored_item, stored_key

LONG = b"n" * PREFIX
USERS = Bucket.AUTH_USERS

tails = st.text(alphabet="\x00am\xff", max_size=40).map(lambda text: text.encode("latin-1"))
names = st.builds(
    lambda head, tail: head + tail,
    st.sampled_from([b"a", b"n", LONG[:-1], LONG, LONG + b"m" * 30, LONG + b"m" * 32, LONG * 2]),
    tails,
)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    backend = Backend(tmp_path_factory.mktemp("buckets") / "kvorum.mdb")
    yield backend
    backend.close()


def test_lmdb_has_the_limit_we_think(backend: Backend) -> None:
    assert backend.database.env.max_key_size() == KEY_LIMIT


@given(names, st.binary(max_size=20))
def test_a_stored_item_is_loaded_again(key: bytes, value: bytes) -> None:
    place, record = stored_item(key, value)
    assert place == stored_key(key)
    assert 0 < len(place) <= KEY_LIMIT
    assert loaded_item(place, record) == (key, value)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(names, st.binary(max_size=5), max_size=12), st.lists(names, max_size=6))
def test_ranges_are_in_key_order_in_every_layer(
    backend: Backend, content: dict[bytes, bytes], bounds: list[bytes]
) -> None:
    for key, _ in backend.range(USERS, b"", None):
        backend.delete(USERS, key)
    for number, (key, value) in enumerate(content.items()):
        backend.put(USERS, key, b"old" if number % 3 else value)
        if number == len(content) // 2:
            backend.commit_now()
    for number, (key, value) in enumerate(content.items()):
        if number % 3:
            backend.put(USERS, key, value)
    check_ranges(backend, content, bounds)
    backend.commit_now()
    check_ranges(backend, content, bounds)
    with backend.read_view() as view:
        assert list(view.items(USERS)) == sorted(content.items())
        assert view.count(USERS) == len(content)
        assert {key: view.get(USERS, key) for key in content} == content


def check_ranges(backend: Backend, content: dict[bytes, bytes], bounds: list[bytes]) -> None:
    ordered = sorted(content.items())
    assert backend.range(USERS, b"", None) == ordered
    for lo in (b"", *bounds):
        assert backend.get(USERS, lo) == content.get(lo)
        for hi in (None, *bounds):
            expected = [item for item in ordered if item[0] >= lo and (hi is None or item[0] < hi)]
            assert backend.range(USERS, lo, hi) == expected
            assert backend.range(USERS, lo, hi, 2) == expected[:2]
    assert backend.get_many(USERS, bounds) == [content.get(key) for key in bounds]


def test_an_empty_key_is_refused(backend: Backend) -> None:
    with pytest.raises(ValueError, match="empty key in bucket auth"):
        backend.put("auth", b"", b"")
    assert backend.get("auth", b"") is None


def test_buckets_have_etcds_names() -> None:
    assert sorted(Bucket) == [
        "alarm",
        "auth",
        "authRoles",
        "authUsers",
        "cluster",
        "key",
        "lease",
        "members",
        "members_removed",
        "meta",
    ]


def test_an_unknown_bucket_is_refused(backend: Backend) -> None:
    with pytest.raises(KeyError):
        backend.put("v2", b"a", b"")
