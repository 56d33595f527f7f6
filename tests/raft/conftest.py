"""Makes ``raftlab`` importable, and hands the recorded traces to the tests that replay them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

# Where the traces lie beside a checkout; --raft-traces names another folder.
BESIDE = Path("../shared/raft-traces")

KINDS = {
    "interaction_trace": "testdata",
    "quorum_trace": "quorum",
    "confchange_trace": "confchange",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, folder in KINDS.items():
        if fixture in metafunc.fixturenames:
            files = trace_files(traces_root(metafunc.config), folder)
            missing = pytest.mark.skip(
                f"no {folder} traces: give their folder with --raft-traces, "
                f"or lay it at {BESIDE} from the repository"
            )
            params = [pytest.param(file, id=file.stem) for file in files]
            metafunc.parametrize(fixture, params or [pytest.param(None, marks=missing)])


def traces_root(config: pytest.Config) -> Path:
    chosen = config.getoption("raft_traces")
    if not chosen:
        return config.rootpath / BESIDE
    if not any(Path(chosen).rglob("*.txt")):
        raise pytest.UsageError(f"--raft-traces: no trace files in {chosen}")
    return Path(chosen)


def trace_files(root: Path, folder: str) -> list[Path]:
    """The trace files of one kind, in order.

    Those of ``quorum`` lie in ``quorum/testdata``. Files in no such folder are interactions.
    """
    plain = folder == "testdata" and not (root / folder).is_dir()
    return sorted(root.glob("*.txt") if plain else (root / folder).rglob("*.txt"))
