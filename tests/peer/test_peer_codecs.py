"""The two stream encodings: round trips, real bytes, limits, and any cuts."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.peer import message_codec, msgapp_codec
from kvorum.peer.framing import FrameDecoder
from kvorum.peer.message_codec import MessageDecoder, MessageEncoder, encode_framed
from kvorum.peer.msgapp_codec import MAX_ENTRIES, MsgAppDecoder, MsgAppEncoder, Runs
from kvorum.raft import codec
from kvorum.raft.errors import DecodeError
from kvorum.raft.types import Entry, EntryType, Message, MsgType

LOCAL, SENDER = 0x8E9E05C52164694D, 0x1A2B3C

uints = st.integers(0, (1 << 64) - 1) | st.integers(0, 300)
payloads = st.binary(max_size=40) | st.integers(100, 17000).map(lambda size: b"x" * size)


@st.composite
def appends(draw: Any) -> list[Message]:
    """Appends as a leader makes them: mostly one after the other, now and then back or on."""
    term, index, made = draw(st.integers(1, 3)), draw(st.integers(0, 1 << 20)), []
    for _ in range(draw(st.integers(0, 6))):
        log_term = draw(st.sampled_from([term, term, term, max(1, term - 1)]))
        kinds = st.sampled_from([EntryType.NORMAL] * 4 + [EntryType.CONF_CHANGE])
        data = draw(st.lists(st.tuples(kinds, payloads), max_size=4))
        entries = [Entry(term, index + n, kind, one) for n, (kind, one) in enumerate(data, 1)]
        made.append(
            Message(
                MsgType.APP,
                LOCAL,
                SENDER,
                term,
                log_term=log_term,
                index=index,
                entries=entries,
                commit=draw(uints),
            )
        )
        step = draw(st.sampled_from(["on", "on", "on", "back", "term"]))
        if step == "on":
            index += len(entries)
        elif step == "back":
            index = draw(st.integers(0, index))
        else:
            term += 1
    return made


messages = st.builds(
    Message,
    st.sampled_from(MsgType),
    st.integers(1, (1 << 64) - 1),
    uints,
    uints,
    log_term=uints,
    index=uints,
    commit=uints,
    reject=st.booleans(),
    context=payloads,
    entries=st.lists(st.builds(Entry, uints, uints, st.sampled_from(EntryType), payloads)),
)


def encoded(encoder: MessageEncoder | MsgAppEncoder, sent: list[Message]) -> bytes:
    out: list[bytes] = []
    size = sum(encoder.encode(message, out) for message in sent)
    data = b"".join(out)
    assert size == len(data)
    return data


def fed(decoder: FrameDecoder, raw: bytes, cuts: list[int]) -> list[Message]:
    found: list[Message] = []
    for at, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found += decoder.feed(raw[at:end])
    return found


def cuts_of(data: st.DataObject, raw: bytes) -> list[int]:
    return sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))


def with_heartbeats(parts: list[bytes], heartbeat: bytes, data: st.DataObject) -> bytes:
    return b"".join(part + heartbeat * data.draw(st.integers(0, 2)) for part in [b"", *parts])


# --- what is sent arrives


@given(st.lists(messages, max_size=5), st.data())
def test_messages_in_any_pieces(sent: list[Message], data: st.DataObject) -> None:
    parts = [encoded(MessageEncoder(), [message]) for message in sent]
    raw = with_heartbeats(parts, message_codec.LINK_HEARTBEAT, data)
    assert fed(MessageDecoder(), raw, cuts_of(data, raw)) == sent


@given(appends(), st.data())
def test_appends_in_any_pieces(sent: list[Message], data: st.DataObject) -> None:
    encoder = MsgAppEncoder(Runs())
    parts = [encoded(encoder, [message]) for message in sent]
    raw = with_heartbeats(parts, msgapp_codec.LINK_HEARTBEAT, data)
    decoder = MsgAppDecoder(LOCAL, SENDER)
    assert fed(decoder, raw, cuts_of(data, raw)) == sent


@settings(max_examples=25)
@given(appends(), st.lists(messages, max_size=3))
def test_byte_by_byte(sent: list[Message], others: list[Message]) -> None:
    raw = encoded(MsgAppEncoder(Runs()), sent)
    assert fed(MsgAppDecoder(LOCAL, SENDER), raw, list(range(1, len(raw)))) == sent
    raw = encoded(MessageEncoder(), others)
    assert fed(MessageDecoder(), raw, list(range(1, len(raw)))) == others


@given(appends())
def test_runs_are_shared_between_followers(sent: list[Message]) -> None:
    runs = Runs()
    one, two = MsgAppEncoder(runs), MsgAppEncoder(runs)
    for message in sent:
        assert encoded(one, [message]) == encoded(two, [message])
    runs.forget()
    assert encoded(MsgAppEncoder(Runs()), sent) == encoded(MsgAppEncoder(runs), sent)


def append(index: int, *data: bytes, term: int = 1, commit: int = 0) -> Message:
    entries = [Entry(term, index + n, data=one) for n, one in enumerate(data, 1)]
    return Message(
        MsgType.APP,
        LOCAL,
        SENDER,
        term,
        log_term=term,
        index=index,
        entries=entries,
        commit=commit,
    )


@pytest.mark.plain
def test_a_run_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    encode = codec.encode_entry

    def counting(entry: Entry) -> bytes:
        nonlocal count
        count += 1
        return encode(entry)

    first, second = append(5, b"a", b"b"), append(5)
    second.entries = list(first.entries)
    start = append(5)
    encoders = [MsgAppEncoder(runs := Runs()), MsgAppEncoder(runs)]
    for encoder in encoders:
        encoded(encoder, [start])
    monkeypatch.setattr(codec, "encode_entry", counting)
    assert encoded(encoders[0], [first]) == encoded(encoders[1], [second])
    assert count == 2


# --- the bytes


def test_what_is_told_from_the_append_before_is_left_out() -> None:
    """The example of the layout, byte for byte."""
    encoder = MsgAppEncoder(Runs())
    first, second, third = append(0, b"x"), append(1, b"y", b"z", commit=1), append(3, commit=3)
    number = lambda value: value.to_bytes(8, "big")  # noqa: E731
    full = codec.encode_message(first)
    assert encoded(encoder, [first]) == b"\x02" + number(len(full)) + full
    y, z = (codec.encode_entry(entry) for entry in second.entries)
    assert encoded(encoder, [second]) == b"".join(
        (b"\x01", number(2), number(len(y)), y, number(len(z)), z, number(1))
    )
    assert encoded(encoder, [third]) == b"\x01" + number(0) + number(3)


@pytest.mark.parametrize(
    "jump",
    [
        append(4, b"x"),
        append(2, b"x", term=2),
        Message(MsgType.APP, LOCAL, SENDER, 2, log_term=1, index=2, entries=[Entry(2, 3)]),
    ],
    ids=["another place", "another term", "across terms"],
)
def test_anything_else_is_sent_in_full(jump: Message) -> None:
    encoder = MsgAppEncoder(Runs())
    encoded(encoder, [append(0, b"a", b"b")])
    assert encoded(encoder, [jump])[:1] == b"\x02"
    end = jump.entries[-1]
    assert encoded(encoder, [append(end.index, b"y", term=jump.term)])[:1] == b"\x01"


def test_heartbeats_of_real_releases() -> None:
    """etcd 3.5 writes every field of its link heartbeat, and an empty snapshot."""
    old = bytes.fromhex("0808100018002000280030004000 4a06 12040a0010001800 50005800")
    raw = len(old).to_bytes(8, "big") + old
    assert MessageDecoder().feed(raw + message_codec.LINK_HEARTBEAT) == []
    beat = Message(MsgType.HEARTBEAT, LOCAL, SENDER, 3, commit=9, context=b"\1\0\0\0\0\0\0\0")
    assert MessageDecoder().feed(raw + encode_framed(beat)) == [beat]


# --- what nobody sends


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("decoder", "raw", "complaint"),
    [
        (MessageDecoder(), number(1 << 40), "are announced"),
        (MessageDecoder(limit=10), number(11), "11 bytes are announced, more than 10"),
        (MessageDecoder(), number(2) + b"\xff\xff", "bad varint"),
        (MsgAppDecoder(1, 2), b"\x03", "a frame of kind 3"),
        (MsgAppDecoder(1, 2), b"\x07" + number(5), "a frame of kind 7"),
        (MsgAppDecoder(1, 2), b"\x02" + number(1 << 40), "are announced"),
        (MsgAppDecoder(1, 2), b"\x01" + number(MAX_ENTRIES + 1), "an append of"),
        (MsgAppDecoder(1, 2), b"\x01" + number((1 << 64) - 1), "an append of"),
        (MsgAppDecoder(1, 2), b"\x01" + number(1) + number(1 << 63), "are announced"),
        (MsgAppDecoder(1, 2), b"\x01" + number(1) + number(1) + b"\x10", "bad varint"),
        (MsgAppDecoder(1, 2), b"\x02" + number(2) + b"\x08\x08", "MsgHeartbeat on the msgapp"),
        (
            MsgAppDecoder(1, 2, limit=10),
            b"\x01" + number(3) + (number(4) + b"\x10\1\x18\1") * 3,
            "4 bytes are announced, more than 2",
        ),
    ],
)
def test_what_is_wrong_is_said(decoder: FrameDecoder, raw: bytes, complaint: str) -> None:
    with pytest.raises(DecodeError, match=complaint):
        decoder.feed(raw)


def test_only_appends_go_by_their_stream() -> None:
    with pytest.raises(AssertionError, match="MsgHeartbeat"):
        MsgAppEncoder(Runs()).encode(Message(MsgType.HEARTBEAT), [])


@given(st.booleans(), st.binary(max_size=100))
def test_junk_is_refused_or_waits(plain: bool, junk: bytes) -> None:
    decoder = MessageDecoder(1000) if plain else MsgAppDecoder(1, 2, 1000)
    with suppress(DecodeError):
        decoder.feed(junk)


@given(appends(), st.data())
def test_a_damaged_stream_is_refused_or_read_but_never_worse(
    sent: list[Message], data: st.DataObject
) -> None:
    raw = bytearray(encoded(MsgAppEncoder(Runs()), sent) + b"\0")
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        fed(MsgAppDecoder(LOCAL, SENDER), bytes(raw), cuts_of(data, bytes(raw)))


def test_a_large_message_in_small_pieces_is_not_copied_again_and_again() -> None:
    """Each piece is kept until all are here: the work is that of one copy, not of thousands."""
    big = Message(MsgType.PROP, LOCAL, SENDER, entries=[Entry(data=b"x" * (1 << 22))])
    raw = encode_framed(big)
    decoder = MessageDecoder()
    joined = 0
    for at in range(0, len(raw), 1000):
        held = len(decoder._parts)
        found = decoder.feed(raw[at : at + 1000])
        joined += len(decoder._parts) <= held
    assert found == [big]
    assert joined <= 3


def test_random_pieces_of_a_long_stream() -> None:
    chance = random.Random(7)
    encoder, decoder = MsgAppEncoder(Runs()), MsgAppDecoder(LOCAL, SENDER)
    sent = [append(n * 20, *[b"v" * chance.randrange(2000)] * 20) for n in range(200)]
    raw = encoded(encoder, sent)
    found: list[Message] = []
    at = 0
    while at < len(raw):
        size = chance.choice([1, 7, 100, 4096, 65536])
        found += decoder.feed(raw[at : at + size])
        at += size
    assert found == sent
