"""What is seen of a cluster from outside, where it takes a moment that no run meets for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.cluster import Cluster, Settings

from kvorum.pb import etcdserverpb as pb

REVISION = 10852


class Answers:
    """A member that gives these answers to HashKV, the last of them for ever."""

    def __init__(self, name: str, *answers: tuple[int, int] | None) -> None:
        self.name = name
        self._answers: Iterator[tuple[int, int] | None] = iter(answers)
        self._last = answers[-1]

    async def ask(self, *_: Any, revision: int, **__: Any) -> pb.HashKVResponse | None:
        assert revision == REVISION
        answer = next(self._answers, self._last)
        return answer and pb.HashKVResponse(hash=answer[0], compact_revision=answer[1])


def hashes(folder: Path, *members: Answers, seconds: float = 10.0) -> dict[str, tuple[int, int]]:
    cluster = Cluster(folder, {}, None, Settings())
    cluster.members = {member.name: member for member in members}  # type: ignore[misc]
    return asyncio.run(cluster.hashes(REVISION, seconds))


def test_hashes_are_of_one_compaction(tmp_path: Path) -> None:
    """One member has carried out a compaction, the other will in a moment."""
    found = hashes(tmp_path, Answers("a", (1, 10774)), Answers("b", None, (2, 10750), (1, 10774)))
    assert found == {"a": (1, 10774), "b": (1, 10774)}


def test_a_compaction_that_one_never_does_is_seen(tmp_path: Path) -> None:
    found = hashes(tmp_path, Answers("a", (1, 10774)), Answers("b", (2, 10750)), seconds=0.1)
    assert found == {"a": (1, 10774), "b": (2, 10750)}


def test_one_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def describe(_: Cluster) -> str:
        return "two members"

    monkeypatch.setattr(Cluster, "describe", describe)
    with pytest.raises(AssertionError, match=r"\{'b'\} have not reached 10852: two members"):
        hashes(tmp_path, Answers("a", (1, 10774)), Answers("b", None), seconds=0.1)
