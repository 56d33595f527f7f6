"""A leader's view of one member: the three states and the window of appends under way."""

from __future__ import annotations

import pytest

from kvorum.raft import InvariantViolation, Progress, ProgressState
from kvorum.raft.progress import Inflights
from kvorum.types import Index

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


def progress(state: ProgressState, match: int = 3, next: int = 10, window: int = 4) -> Progress:
    pr = Progress(Index(match), Index(next), Inflights(window))
    pr.state = state
    return pr


# --- the window


def test_a_window_counts_messages():
    window = Inflights(2)
    window.add(Index(5), 0)
    assert not window.full()
    window.add(Index(7), 0)
    assert window.full()
    with pytest.raises(InvariantViolation, match="Full inflights"):
        window.add(Index(8), 0)


@pytest.mark.parametrize(("index", "left"), [(4, 3), (5, 2), (6, 2), (7, 1), (9, 0), (99, 0)])
def test_an_answer_frees_all_messages_before_it(index, left):
    window = Inflights(3)
    for last in (5, 7, 9):
        window.add(Index(last), 10)
    window.free_to(Index(index))
    assert (len(window), window.bytes) == (left, 10 * left)


def test_a_window_may_be_passed_by_one_message():
    window = Inflights(9, 100)
    window.add(Index(1), 99)
    assert not window.full()
    window.add(Index(2), 1000)
    assert window.full()
    window.free_to(Index(1))
    assert window.full()
    window.free_to(Index(2))
    assert not window.full()


def test_a_copy_is_on_its_own():
    window = Inflights(3, 50)
    window.add(Index(1), 10)
    twin = window.copy()
    window.clear()
    assert (len(window), window.bytes) == (0, 0)
    assert (len(twin), twin.bytes, twin.max_count, twin.max_bytes) == (1, 10, 3, 50)


# --- transitions


@pytest.mark.parametrize(
    ("state", "pending", "next"), [(REPLICATE, 0, 4), (SNAPSHOT, 10, 11), (SNAPSHOT, 2, 4)]
)
def test_become_probe(state, pending, next):
    pr = progress(state, match=3)
    pr.pending_snapshot = Index(pending)
    pr.sent_commit = Index(99)
    pr.become_probe()
    assert (pr.state, pr.next, pr.pending_snapshot) == (PROBE, next, 0)
    assert pr.sent_commit == next - 1


def test_become_replicate():
    pr = progress(PROBE, match=3)
    pr.append_paused = True
    pr.become_replicate()
    assert (pr.state, pr.next, pr.append_paused) == (REPLICATE, 4, False)


def test_become_snapshot():
    pr = progress(REPLICATE)
    pr.inflights.add(Index(5), 0)
    pr.become_snapshot(Index(20))
    assert (pr.state, pr.next, pr.pending_snapshot, pr.sent_commit) == (SNAPSHOT, 21, 20, 20)
    assert len(pr.inflights) == 0


# --- sending


@pytest.mark.parametrize(
    ("state", "paused", "result"),
    [
        (PROBE, False, False),
        (PROBE, True, True),
        (REPLICATE, False, False),
        (REPLICATE, True, True),
        (SNAPSHOT, False, True),
        (SNAPSHOT, True, True),
    ],
)
def test_paused(state, paused, result):
    pr = progress(state)
    pr.append_paused = paused
    assert pr.paused() is result


def test_replication_goes_on_until_the_window_is_full():
    pr = progress(REPLICATE, next=10, window=2)
    pr.sent_entries(3, 30)
    assert (pr.next, pr.paused()) == (13, False)
    pr.sent_entries(0, 0)
    assert (pr.next, len(pr.inflights), pr.paused()) == (13, 1, False)
    pr.sent_entries(1, 10)
    assert (pr.next, pr.paused()) == (14, True)


def test_a_probe_is_sent_once():
    pr = progress(PROBE)
    pr.sent_entries(0, 0)
    assert not pr.paused()
    pr.sent_entries(2, 20)
    assert (pr.next, pr.paused()) == (10, True)


def test_nothing_is_sent_past_a_snapshot():
    with pytest.raises(InvariantViolation, match="unhandled state StateSnapshot"):
        progress(SNAPSHOT).sent_entries(1, 1)


@pytest.mark.parametrize(
    ("sent", "next", "commit", "answer"),
    [(4, 10, 5, True), (5, 10, 5, False), (6, 10, 5, False), (9, 10, 12, False), (8, 10, 12, True)],
)
def test_a_commit_index_is_sent_if_it_can_be_news(sent, next, commit, answer):
    pr = progress(REPLICATE, next=next)
    pr.sent_commit = Index(sent)
    assert pr.can_bump_commit(Index(commit)) is answer


# --- answers


@pytest.mark.parametrize(
    ("index", "news", "match", "next"),
    [(2, False, 3, 5), (3, False, 3, 5), (4, True, 4, 5), (5, True, 5, 6), (9, True, 9, 10)],
)
def test_maybe_update(index, news, match, next):
    pr = progress(PROBE, match=3, next=5)
    pr.append_paused = True
    assert pr.maybe_update(Index(index)) is news
    assert (pr.match, pr.next, pr.append_paused) == (match, next, not news)


@pytest.mark.parametrize(
    ("state", "match", "next", "rejected", "hint", "news", "result"),
    [
        (REPLICATE, 5, 10, 5, 5, False, 10),  # acknowledged since
        (REPLICATE, 5, 10, 4, 4, False, 10),
        (REPLICATE, 5, 10, 9, 9, True, 6),
        (PROBE, 0, 0, 0, 0, False, 0),  # not the answer to the probe
        (PROBE, 0, 10, 5, 5, False, 10),
        (PROBE, 0, 10, 9, 9, True, 9),
        (PROBE, 0, 2, 1, 1, True, 1),
        (PROBE, 0, 1, 0, 0, True, 1),
        (PROBE, 0, 10, 9, 2, True, 3),  # the hint says how far back
        (PROBE, 4, 10, 9, 0, True, 5),  # but never before what is acknowledged
    ],
)
def test_maybe_decrease(state, match, next, rejected, hint, news, result):
    pr = progress(state, match=match, next=next)
    pr.append_paused = True
    pr.sent_commit = Index(99)
    assert pr.maybe_decrease(Index(rejected), Index(hint)) is news
    assert (pr.match, pr.next) == (match, result)
    if news:
        assert pr.sent_commit == result - 1
        assert pr.append_paused is (state is REPLICATE)


def test_text():
    pr = progress(SNAPSHOT, match=1, next=8, window=1)
    pr.is_learner = True
    pr.pending_snapshot = Index(7)
    pr.inflights.add(Index(7), 0)
    text = "StateSnapshot match=1 next=8 learner paused pendingSnap=7 inactive inflight=1[full]"
    assert str(pr) == text
