"""Which version a cluster takes, given what its members are."""

from __future__ import annotations

import pytest

from kvorum.membership.version import LOWEST, OWN, InvalidDowngrade, Version, decide, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.5.1", (3, 5)),
        ("3.7.0-rc.0", (3, 7)),
        ("3.7.0+git", (3, 7)),
        ("3.10.0", (3, 10)),
        ("3.5", None),
        ("v3.5.0", None),
        ("3.5.0 ", None),
        ("\u0663.5.0", None),
        ("not_decided", None),
        ("unknown", None),
        ("", None),
        ("9999999999.0.0", None),
    ],
)
def test_releases(text: str, version: tuple[int, int] | None) -> None:
    assert parse_version(text) == version


def test_as_text_and_downwards() -> None:
    assert str(Version(3, 10)) == "3.10.0"
    assert Version(3, 10).below() == (3, 9)
    assert Version(3, 9) < Version(3, 10) < Version(4, 0)
    assert (str(OWN), str(LOWEST)) == ("3.7.0", "3.0.0")


def v(text: str) -> Version | None:
    return parse_version(text + ".0") if text else None


@pytest.mark.parametrize(
    ("current", "servers", "target", "decided"),
    [
        ("", ["3.7", "3.7"], "", "3.7"),
        ("", ["3.7", "3.5"], "", "3.5"),
        ("", ["3.7", ""], "", "3.0"),
        ("", ["3.7"], "", "3.7"),
        ("3.0", ["3.7", ""], "", ""),
        ("3.0", ["3.7", "3.6"], "", "3.6"),
        ("3.5", ["3.7", "3.5"], "", ""),
        ("3.5", ["3.7", "3.7"], "", "3.7"),
        ("3.7", ["3.7", "3.5"], "", ""),
        ("3.7", ["4.0", "4.0"], "", ""),
        ("3.7", ["3.7", "3.7"], "3.6", "3.6"),
        ("3.6", ["3.7", "3.7"], "3.6", ""),
        ("3.6", ["3.7", "3.6"], "3.6", ""),
        ("3.7", ["3.7", ""], "3.6", ""),
        ("3.6", ["3.7", "3.7"], "", "3.7"),
    ],
)
def test_decisions(current: str, servers: list[str], target: str, decided: str) -> None:
    assert decide(v(current), [v(server) for server in servers], v(target)) == v(decided)


@pytest.mark.parametrize(
    ("current", "lowest", "target"), [("3.7", "3.7", "3.5"), ("3.7", "3.6", "3.6")]
)
def test_a_downgrade_that_leads_elsewhere(current: str, lowest: str, target: str) -> None:
    with pytest.raises(InvalidDowngrade):
        decide(v(current), [v("3.7"), v(lowest)], v(target))


def test_without_members_nothing_is_known() -> None:
    assert decide(None, [], None) == LOWEST
    assert decide(Version(3, 5), [], None) is None
