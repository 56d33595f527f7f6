"""Configurations that name no cluster to begin or to join: the same text as from a real etcd."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from boot_kit import ME, begin, booting, config_of, refusal
from peer_fakes import FakeNames
from support.binaries import Binaries
from support.ports import free_port

from kvorum.config import parse_urls
from kvorum.membership import member_id
from kvorum.server.errors import BadInitialCluster, StartError

P = "http://127.0.0.1:{peer}"
Q = "http://127.0.0.1:{other}"
R = "http://127.0.0.1:{third}"

# (advertised, --initial-cluster, state, what is said). What follows in parentheses has other words
# in etcd 3.5 than in 3.7 and is not compared.
WRONG = {
    "no own name": (P, f"x={P}", "new", "couldn't find local name"),
    "nobody at all": (P, "", "new", "couldn't find local name"),
    "one URL twice": (P, f"m={P},b={P}", "new", "has duplicate url"),
    "another URL": (Q, f"m={P}", "new", "--initial-cluster has m="),
    "one URL too few": (P, f"m={P},m={Q}", "new", "--initial-cluster has m="),
    "one URL too many": (f"{P},{Q}", f"m={P}", "new", "--initial-advertise-peer-urls has http"),
    "one of two": (f"{P},{Q}", f"m={P},m={R}", "new", "--initial-cluster has m="),
    "no such scheme": (P, "m=ftp://127.0.0.1:1", "new", "URL scheme must be"),
    "no URL": (P, f"m={P},b", "new", "URL scheme must be"),
    "no port": (P, f"m={P},b=http://127.0.0.1", "new", "does not have the form"),
    "a path": (P, f"m={P}/x", "new", "must not contain a path"),
    "join without own name": (P, f"x={P}", "existing", "couldn't find local name"),
    "join with one URL twice": (P, f"m={P},b={P}", "existing", "has duplicate url"),
    "join alone": (P, f"m={P}", "existing", "could not retrieve cluster information"),
    "join with nobody there": (P, f"m={P},b={Q}", "existing", "could not retrieve cluster"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_etcd_says_the_same(
    tmp_path: Path, reference: Binaries, case: tuple[str, str, str, str]
) -> None:
    ports = {"peer": free_port(), "other": free_port(), "third": free_port()}
    advertised, initial, state = (text.format(**ports) for text in case[:3])
    config = config_of(
        tmp_path,
        initial_advertise_peer_urls=parse_urls(advertised),
        initial_cluster=initial,
        initial_cluster_state=state,
    )
    ours = refusal(config, StartError, FakeNames())
    assert case[3] in ours
    theirs = _etcd_says(
        reference,
        tmp_path,
        f"--listen-peer-urls={P.format(**ports)}",
        f"--initial-advertise-peer-urls={advertised}",
        f"--initial-cluster={initial}",
        f"--initial-cluster-state={state}",
    )
    assert ours.partition(" (")[0] == theirs.partition(" (")[0]


def _etcd_says(reference: Binaries, folder: Path, *flags: str) -> str:
    client = f"http://127.0.0.1:{free_port()}"
    command = [
        str(reference.etcd),
        "--name=m",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        "--initial-cluster-token=tok1",
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return str(lines[-1]["error"])


@pytest.mark.parametrize(
    ("advertised", "initial"),
    [
        ("http://a.example:1", "m=http://10.0.0.1:1"),
        ("http://10.0.0.1:1", "m=http://A.EXAMPLE:1"),
        ("http://10.0.0.1:1,http://10.0.0.2:1", "m=http://b.example:1,m=http://a.example:1"),
    ],
)
def test_what_we_advertise_may_be_an_address_and_a_name(
    tmp_path: Path, advertised: str, initial: str
) -> None:
    """The id follows from what the configuration says, as all members must come to the same."""

    config = config_of(
        tmp_path, initial_advertise_peer_urls=parse_urls(advertised), initial_cluster=initial
    )
    names = FakeNames({"a.example": "10.0.0.1", "A.EXAMPLE": "10.0.0.1", "b.example": "10.0.0.2"})
    with booting(config, names) as booted:
        urls = [entry.removeprefix("m=") for entry in initial.split(",")]
        assert booted.member == member_id(urls, "tok1")


def test_names_that_lead_elsewhere(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        initial_advertise_peer_urls=parse_urls("http://10.0.0.1:1"),
        initial_cluster="m=http://b.example:1",
    )
    text = refusal(config, BadInitialCluster, FakeNames({"b.example": "10.0.0.2"}))
    assert text == (
        "--initial-cluster has m=http://b.example:1 but missing from"
        " --initial-advertise-peer-urls=http://10.0.0.1:1"
        ' (resolved urls: "http://10.0.0.1:1" != "http://10.0.0.2:1")'
    )


def test_a_list_that_makes_no_sense_is_ignored_once_there_is_data(tmp_path: Path) -> None:
    begin(config_of(tmp_path))
    with booting(config_of(tmp_path, name="z", initial_cluster="m=ftp://a,,b")) as booted:
        assert booted.member == ME
