"""Failpoints: the terms, the switches, and what a point does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kvorum import failpoint

POINT = "walBeforeSync"


@pytest.fixture(autouse=True)
def all_off() -> Iterator[None]:
    failpoint.disable_all()
    yield
    failpoint.disable_all()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("return", ["", "", ""]),
        ("return()", ["", "", ""]),
        ('return("a \\"b\\"")', ['a "b"'] * 3),
        ("return(7)", ["7"] * 3),
        ("return(-7)", ["-7"] * 3),
        ("return(true)", ["true"] * 3),
        ("off", [None, None, None]),
        ('2*return("x")', ["x", "x", None]),
        ('1*return("x")->return("y")', ["x", "y", "y"]),
        ('1*return("x")->1*off->return("z")', ["x", None, "z"]),
        ('0*return("x")', [None, None, None]),
        ('0.0%return("x")->return("y")', ["y", "y", "y"]),
        ('100%return("x")', ["x", "x", "x"]),
        ('2*100.0%return("x")', ["x", "x", None]),
        ('3*1*return("x")', ["x", None, None]),
    ],
)
def test_terms(text: str, values: list[str | None]) -> None:
    failpoint.enable(POINT, text)
    assert [failpoint.hit(POINT) for _ in values] == values


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "panic->",
        "panic panic",
        "return(x)",
        'return("x)',
        "sleep",
        'sleep("fast")',
        "sleep(true)",
        "*panic",
        "1*",
        "break",
    ],
)
def test_terms_that_do_not_parse(text: str) -> None:
    with pytest.raises(ValueError, match=r"failpoint|duration"):
        failpoint.enable(POINT, text)
    assert not failpoint.active


def test_share_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0.24, 0.26])
    monkeypatch.setattr("kvorum.failpoint.random.random", lambda: next(drawn))
    failpoint.enable(POINT, '25.0%return("x")')
    assert [failpoint.hit(POINT), failpoint.hit(POINT)] == ["x", None]


def test_off_costs_one_attribute() -> None:
    assert failpoint.active is False
    failpoint.enable(POINT, "off")
    assert failpoint.active is True
    failpoint.enable("walAfterSync", "off")
    failpoint.disable(POINT)
    assert failpoint.active is True
    failpoint.disable("walAfterSync")
    assert failpoint.active is False


def test_counts_what_ran() -> None:
    failpoint.enable(POINT, '2*return("x")')
    for _ in range(5):
        failpoint.hit(POINT)
    assert failpoint.status(POINT) == ('2*return("x")', 2)
    assert failpoint.status("walAfterSync") == ("", 0)


@pytest.mark.parametrize("text", ['sleep("20ms")', "sleep(20)"])
def test_sleep_waits_here_or_tells_how_long(text: str) -> None:
    failpoint.enable(POINT, text)
    assert failpoint.evaluate(POINT) == failpoint.Outcome(0.02, None)
    begin = time.monotonic()
    assert failpoint.hit(POINT) is None
    assert time.monotonic() - begin >= 0.02


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    failpoint.enable(POINT, "print")
    assert failpoint.hit(POINT) is None
    assert capsys.readouterr().out == f"failpoint print: {POINT}\n"


def test_unknown_names() -> None:
    for action in (failpoint.disable, failpoint.status, lambda name: failpoint.enable(name, "off")):
        with pytest.raises(LookupError, match="does not exist"):
            action("noSuchPoint")
    failpoint.enable(POINT, "off")
    with pytest.raises(AssertionError, match="noSuchPoint"):
        failpoint.hit("noSuchPoint")


def test_disable_what_is_off() -> None:
    with pytest.raises(ValueError, match="is disabled"):
        failpoint.disable(POINT)


def test_from_the_environment() -> None:
    environment = {"GOFAIL_FAILPOINTS": f'{POINT}=return("a;b");walAfterSync=off;nope=panic;'}
    with pytest.raises(ValueError, match="bad failpoint"):
        failpoint.start(environment)  # a text cannot hold a semicolon, in gofail neither
    environment = {"GOFAIL_FAILPOINTS": f'{POINT}=return("a");walAfterSync=off;nope=panic;'}
    assert failpoint.start(environment) == ["nope"]
    assert failpoint.hit(POINT) == "a"
    assert failpoint.status("walAfterSync")[0] == "off"


@pytest.mark.parametrize("text", ["a", "a=b=c", "=off=x"])
def test_bad_environment(text: str) -> None:
    with pytest.raises(ValueError, match="bad failpoint"):
        failpoint.start({"GOFAIL_FAILPOINTS": text})


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "127.0.0.1:x"])
def test_bad_address(address: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        failpoint.start({"GOFAIL_HTTP": address})


@pytest.mark.parametrize(("term", "said"), [("panic", "{}"), ('panic("why")', "why")])
def test_panic_ends_the_process_as_in_go(term: str, said: str) -> None:
    code = (
        "import os; from kvorum import failpoint; failpoint.start(os.environ)\n"
        f"try: failpoint.hit({POINT!r})\n"
        "finally: print('not reached')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"GOFAIL_FAILPOINTS": f"{POINT}={term}", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"panic: failpoint panic: {said}\n\nfailpoint {POINT} reached:")


def test_has_etcd_s_points() -> None:
    """The spelling is etcd's, mistakes included: test harnesses ask for these names."""
    assert len(failpoint.NAMES) == 45
    assert json.loads(json.dumps(sorted(failpoint.NAMES))) == sorted(failpoint.NAMES)
    assert {"raftBeforeWALSaveSnaphot", "defragdbFail", "raftDropHeartbeat"} <= failpoint.NAMES
