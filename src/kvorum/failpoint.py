"""Named points in the server at which a test can make it die, wait or fail, as etcd's gofail does.

A point costs one attribute test while nothing is switched on::

    if failpoint.active:
        failpoint.hit("walBeforeSync")

Terms: ``[mods]action[(value)]``, chained with ``->``; the first whose mods allow it runs.
Mods: ``n*`` (the first n times) and ``p%`` (that share of the times). Actions: ``panic``,
``sleep("1s")`` or ``sleep(1000)`` (milliseconds), ``return("text")``, ``print``, ``off``.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from kvorum import durations

NAMES: Final = frozenset(
    {
        "raftBeforeSave",
        "raftAfterSave",
        "raftBeforeLeaderSend",
        "raftBeforeFollowerSend",
        "raftBeforeSaveSnap",
        "raftAfterSaveSnap",
        "raftBeforeApplySnap",
        "raftAfterApplySnap",
        "raftAfterWALRelease",
        "raftBeforeAdvance",
        "raftBeforeWALSaveSnaphot",
        "raftDropHeartbeat",
        "walBeforeSync",
        "walAfterSync",
        "beforeCommit",
        "afterCommit",
        "beforeStartDBTxn",
        "afterStartDBTxn",
        "beforeWritebackBuf",
        "afterWritebackBuf",
        "commitBeforePreCommitHook",
        "commitAfterPreCommitHook",
        "defragBeforeCopy",
        "defragBeforeRename",
        "defragOpenFileError",
        "defragdbFail",
        "compactBeforeSetFinishedCompact",
        "compactAfterSetFinishedCompact",
        "compactBeforeCommitBatch",
        "compactAfterCommitBatch",
        "compactAfterAcquiredBatchTxLock",
        "compactBeforeCommitScheduledCompact",
        "compactAfterCommitScheduledCompact",
        "beforeApplyOneConfChange",
        "beforeApplyOneEntryNormal",
        "applyBeforeOpenSnapshot",
        "applyAfterOpenSnapshot",
        "beforePublishing",
        "afterIsMemberExist",
        "beforeCheckpointInLeaseRenew",
        "beforeLookupWhenLeaseTimeToLive",
        "beforeLookupWhenForwardLeaseTimeToLive",
        "beforeServeHTTPLeaseRenew",
        "beforeSendWatchResponse",
        "beforeRangeStreamChunk",
    }
)
"""Every point, spelled as etcd spells it (raftBeforeWALSaveSnaphot too)."""

active = False
"""True while at least one point is switched on. Read it as ``failpoint.active``, never copy it."""

answering = threading.Lock()
"""Held while an HTTP request is answered, so that whoever switched a panic on gets its answer."""

_lock = threading.Lock()
_points: dict[str, Terms] = {}


class Outcome(NamedTuple):
    """What a point asks of its caller: to wait `delay` seconds, and to act on `value` unless it
    is None (the text of ``return``, empty when it has none)."""

    delay: float
    value: str | None


NOTHING: Final = Outcome(0.0, None)

_TERM: Final = re.compile(
    r"(?P<mods>(?:[0-9]+\*|[0-9]+(?:\.[0-9]*)?%)*)"
    r"(?P<action>off|return|sleep|panic|print)"
    r'(?:\((?P<value>"(?:[^"\\]|\\.)*"|-?[0-9]+|true|false|)\))?'
)
_MOD: Final = re.compile(r"([0-9.]+)([*%])")


@dataclass(slots=True)
class Term:
    action: str
    value: str | None
    """The text between the brackets (of a string: what it stands for), None without brackets."""
    left: int | None
    """How many more times it may run, None for always."""
    share: float
    """The probability with which it runs."""

    def allows(self) -> bool:
        if self.left is not None:
            if self.left <= 0:
                return False
            self.left -= 1
        return self.share >= 1 or random.random() <= self.share


@dataclass(slots=True)
class Terms:
    text: str
    chain: list[Term]
    count: int = 0
    """How many times one of the terms has run."""


def parse(text: str) -> Terms:
    """Raises ValueError that says where `text` stops making sense."""
    chain, rest = [], text.strip()
    while True:
        match = _TERM.match(rest)
        if match is None:
            raise ValueError(f"failpoint: cannot parse {text!r} at {rest!r}")
        chain.append(_term(match))
        rest = rest[match.end() :]
        if not rest:
            return Terms(text, chain)
        if not rest.startswith("->"):
            raise ValueError(f'failpoint: cannot parse {text!r} at {rest!r}, expected "->"')
        rest = rest[2:]


def _term(match: re.Match[str]) -> Term:
    left, share = None, 1.0
    for number, kind in _MOD.findall(match["mods"]):
        if kind == "*":
            left = int(number) if left is None else min(left, int(number))
        else:
            share *= float(number) / 100
    value = match["value"]
    if value is not None and value.startswith('"'):
        value = str(json.loads(value))
    term = Term(match["action"], value, left, share)
    if term.action == "sleep":
        _sleep_seconds(term)  # a bad duration is refused here, not when the point is reached
    return term


def _sleep_seconds(term: Term) -> float:
    text = term.value or ""
    if text.isdecimal():
        return int(text) / 1000
    return max(0, durations.parse(text)) / durations.SECOND


def parse_many(text: str) -> dict[str, str]:
    """``name=terms;name=terms`` as a dict. Raises ValueError for an entry without a =."""
    chosen = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, terms = entry.partition("=")
        if not equals or "=" in terms:
            raise ValueError(f'bad failpoint "{entry}"')
        chosen[name] = terms
    return chosen


def enable(name: str, text: str) -> None:
    """Raises LookupError for an unknown name, ValueError for bad terms."""
    global active
    if name not in NAMES:
        raise LookupError("failpoint: failpoint does not exist")
    terms = parse(text)
    with _lock:
        _points[name] = terms
        active = True


def disable(name: str) -> None:
    """Raises LookupError for an unknown name, ValueError when it is not on."""
    global active
    if name not in NAMES:
        raise LookupError("failpoint: failpoint does not exist")
    with _lock:
        if _points.pop(name, None) is None:
            raise ValueError("failpoint: failpoint is disabled")
        active = bool(_points)


def disable_all() -> None:
    global active
    with _lock:
        _points.clear()
        active = False


def status(name: str) -> tuple[str, int]:
    """Terms and count of a point; ("", 0) while it is off. Raises LookupError if unknown."""
    if name not in NAMES:
        raise LookupError("failpoint: failpoint does not exist")
    with _lock:
        terms = _points.get(name)
        return ("", 0) if terms is None else (terms.text, terms.count)


def evaluate(name: str) -> Outcome:
    """Run the point but leave the waiting to the caller, for code on the event loop that must
    keep it turning. May end the process."""
    assert name in NAMES, f"unknown failpoint {name!r}"
    with _lock:
        terms = _points.get(name)
        if terms is None:
            return NOTHING
        term = next((term for term in terms.chain if term.allows()), None)
        if term is None:
            return NOTHING
        terms.count += 1
    return _run(name, term)


def hit(name: str) -> str | None:
    """Run the point, waiting here for a ``sleep``; the text of a ``return``, else None."""
    outcome = evaluate(name)
    if outcome.delay:
        time.sleep(outcome.delay)
    return outcome.value


def _run(name: str, term: Term) -> Outcome:
    if term.action == "panic":
        _panic(name, term.value)
    if term.action == "sleep":
        return Outcome(_sleep_seconds(term), None)
    if term.action == "return":
        return Outcome(0.0, term.value or "")
    if term.action == "print":
        sys.stdout.write(f"failpoint print: {name}\n")
        sys.stdout.flush()
    return NOTHING


def _panic(name: str, value: str | None) -> NoReturn:
    """End the process as an uncaught panic ends a Go program: a line on stderr, exit code 2."""
    with answering:
        stack = "".join(traceback.format_stack(limit=32)[:-3])
        text = f"panic: failpoint panic: {value or '{}'}\n\nfailpoint {name} reached:\n{stack}"
        try:
            os.write(2, text.encode("utf-8", "backslashreplace"))
        finally:
            os._exit(2)


def start(environment: Mapping[str, str]) -> list[str]:
    """Obey GOFAIL_FAILPOINTS and GOFAIL_HTTP; the names asked for that are unknown.

    Raises ValueError for what does not parse, OSError when the listener cannot be opened.
    """
    wanted = parse_many(environment.get("GOFAIL_FAILPOINTS", ""))
    for name, text in wanted.items():
        if name in NAMES:
            enable(name, text)
    address = environment.get("GOFAIL_HTTP", "")
    if address:
        from kvorum import failpoint_http  # only a test pays for its import

        failpoint_http.serve(address)
    return sorted(wanted.keys() - NAMES)
