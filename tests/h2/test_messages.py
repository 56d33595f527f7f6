"""Messages out of a stream of bytes, however it is cut."""

from __future__ import annotations

import contextlib
import gzip

import pytest
from h2wire import grpc
from hypothesis import given
from hypothesis import strategies as st

from kvorum.h2 import RpcError
from kvorum.h2.message import Inbox, gunzip

MESSAGES = st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=8)


@given(MESSAGES, st.data())
def test_messages_come_out_as_they_went_in(
    messages: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    raw = b"".join(
        grpc(gzip.compress(message), 1) if packed else grpc(message) for message, packed in messages
    )
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=10).map(sorted))
    inbox = Inbox(1000, gzip=True)
    got = []
    fed = taken = 0
    for at, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        inbox.feed(raw[at:end])
        fed += end - at
        if data.draw(st.booleans()):
            continue  # a paused call takes nothing for now
        while (message := inbox.next()) is not None:
            got.append(message)
        taken = fed - inbox.held
        assert 0 <= taken <= fed
    while (message := inbox.next()) is not None:
        got.append(message)
    assert got == [message for message, _ in messages]
    assert inbox.held == 0


@given(st.binary(max_size=200), st.integers(0, 100))
def test_noise_is_refused_or_taken(noise: bytes, limit: int) -> None:
    inbox = Inbox(limit, gzip=True)
    inbox.feed(noise)
    got: list[int] = []
    with contextlib.suppress(RpcError):  # the stream would end with that status
        while (message := inbox.next()) is not None:
            got.append(len(message))
    assert all(size <= limit for size in got)
    assert len(got) <= len(noise) // 5


def test_a_bomb_is_not_unpacked_beyond_the_limit() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(RpcError, match="larger than max 1000000"):
        gunzip(bomb, 1_000_000)
    assert gunzip(gzip.compress(b"x" * 1000), 1000) == b"x" * 1000
    with pytest.raises(RpcError, match="larger than max 999"):
        gunzip(gzip.compress(b"x" * 1000), 999)
