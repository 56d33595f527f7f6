"""Every flag of etcd: known here, with its default, its variable, its key; and wrong once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvorum.config import ConfigError, FlagError, Resolved, load
from kvorum.config.args import IGNORED, parse_args
from kvorum.config.helptext import help_text
from kvorum.config.server import all_settings, flags

ETCD_FLAGS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "etcd_flags.json").read_text()
)
BY_NAME = {row["name"]: row for row in ETCD_FLAGS}
SPECIAL = {"config-file", "version"}

GOOD = {
    "bool": "false",
    "int": "7",
    "int64": "-7",
    "uint": "7",
    "uint32": "7",
    "uint64": "7",
    "duration": "7s",
    "string": "seven",
    "string list": "b,a",
    "string set": "b,a",
    "url list": "http://127.0.0.1:7,http://10.0.0.1:7",
    "Name=bool list": "AllAlpha=true",
}
WRONG = {
    "bool": "maybe",
    "int": "1.5",
    "int64": "9223372036854775808",
    "uint": "-1",
    "uint32": "4294967296",
    "uint64": "seven",
    "duration": "7",
    "url list": "127.0.0.1:7",
    "Name=bool list": "NoSuchGate=true",
    "one of": "none-of-them",
}


def own(row: dict[str, Any]) -> bool:
    return row["name"] not in SPECIAL


OWN_FLAGS = [row for row in ETCD_FLAGS if own(row)]


@pytest.mark.parametrize("row", OWN_FLAGS, ids=lambda row: row["name"])
def test_is_declared_as_in_etcd(row: dict[str, Any]) -> None:
    made = flags()[row["name"]]
    assert made.kind.show(made.default) == row["default"]
    assert (made.yaml or None) == row["yaml"]
    assert made.section == row["section"]
    assert made.environment == row["env"]
    assert made.text.endswith(".")
    assert f"\n  --{made.name} '" in help_text()


def test_declares_nothing_else() -> None:
    assert flags().keys() | SPECIAL == BY_NAME.keys()
    only_in_files = {made.yaml for made in all_settings() if not made.is_flag}
    assert only_in_files == {
        "discovery-config.client.max-request-bytes",
        "discovery-config.client.max-recv-bytes",
        "discovery-config.client.secure.server-name",
        "discovery-config.client.auth.token",
        "client-transport-security.allowed-cn",
        "client-transport-security.skip-client-san-verification",
    }


GOOD_WORDS = {
    "log-level": "debug",
    "cors": "http://a.example:80",
    "initial-cluster-state": "existing",
    "discovery-fallback": "exit",
    "v2-deprecation": "gone",
}


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize("row", OWN_FLAGS, ids=lambda row: row["name"])
def test_takes_a_value(row: dict[str, Any], dashes: str) -> None:
    name = row["name"]
    text = GOOD_WORDS.get(name) or GOOD[row["type"]]
    expected = flags()[name].kind.parse(text)
    assert parse_args([f"{dashes}{name}={text}"]).values == {name: expected}
    if row["type"] != "bool":
        assert parse_args([f"{dashes}{name}", text]).values == {name: expected}


WRONG_WORDS = {"log-level": "loud", "cors": "a.example"}


@pytest.mark.parametrize(
    "row",
    [row for row in ETCD_FLAGS if row["type"] in WRONG or row["name"] in WRONG_WORDS],
    ids=lambda row: row["name"],
)
def test_refuses_a_wrong_value(row: dict[str, Any]) -> None:
    name = row["name"]
    text = WRONG_WORDS.get(name) or WRONG[row["type"]]
    with pytest.raises(FlagError, match="invalid") as caught:
        parse_args([f"--{name}={text}"])
    assert f'"{text}"' in str(caught.value)
    assert f"-{name}: " in str(caught.value)
    if own(row):
        with pytest.raises(ConfigError, match="invalid value"):
            load([], {row["env"]: text})


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--nope"], "flag provided but not defined: -nope"),
        (["--data-dri=x"], "Did you mean --data-dir?"),
        (["--experimental-corrupt-check-time=1s"], "It is settled now: --corrupt-check-time"),
        (["--experimental-initial-corrupt-check"], "--feature-gates=InitialCorruptCheck=true"),
        (["--discovery=http://x"], "flag provided but not defined: -discovery"),
        (["--name"], "flag needs an argument: -name"),
        (["---name"], "bad flag syntax: ---name"),
        (["--=x"], "bad flag syntax: --=x"),
    ],
)
def test_refuses_what_is_no_flag(args: list[str], error: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse_args(args)
    assert error in str(caught.value)


def test_last_of_a_repeated_flag_wins() -> None:
    assert parse_args(["--name=a", "--name", "b"]).values == {"name": "b"}


def test_bool_takes_its_value_only_after_an_equals_sign() -> None:
    line = parse_args(["--pre-vote", "false"])
    assert line.values == {"pre-vote": True}
    assert line.rest == ["false"]


@pytest.mark.parametrize(
    ("args", "rest"), [(["-"], ["-"]), (["--", "--name"], ["--name"]), (["a", "--x"], ["a", "--x"])]
)
def test_flags_end_at_the_first_other_argument(args: list[str], rest: list[str]) -> None:
    assert parse_args(args).rest == rest


def test_other_arguments_are_refused_even_beside_version() -> None:
    with pytest.raises(ConfigError, match='"extra" is not a valid flag'):
        load(["--version", "extra"], {})


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_flags_of_long_ago_are_dropped(name: str) -> None:
    assert parse_args([f"--{name}", f"--{name}=3"]).values == {}
    assert isinstance(load([], {flag_variable(name): "3"}), Resolved)


def flag_variable(name: str) -> str:
    return "ETCD_" + name.upper().replace("-", "_")


@pytest.mark.parametrize("flag", ["-h", "--help", "-help"])
def test_asks_for_help(flag: str) -> None:
    line = load(["--name=a", flag, "--nope"], {})
    assert not isinstance(line, Resolved)
    assert line.wants_help


@pytest.mark.parametrize(
    ("text", "value"), [("0x10", 16), ("010", 8), ("0b11", 3), ("1_000", 1000), ("0", 0)]
)
def test_reads_numbers_as_go_does(text: str, value: int) -> None:
    assert parse_args([f"--snapshot-count={text}"]).values == {"snapshot-count": value}


@pytest.mark.parametrize("text", ["", " 1", "1 ", "1__0", "_1", "0x", "1e3", "+1", "٣"])
def test_refuses_other_numbers(text: str) -> None:
    with pytest.raises(FlagError):
        parse_args([f"--snapshot-count={text}"])
