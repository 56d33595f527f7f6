"""Reads every page of a database that may be damaged: ``python -m kvorum.backend.check``.

LMDB ends the process when it meets a page that cannot be. So this is done in a process of its own,
whose end is the answer.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from pathlib import Path

import lmdb


def is_sound(path: Path) -> bool:
    """Whether every page that the database refers to can be read."""
    command = [sys.executable, "-m", "kvorum.backend.check", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main(path: str) -> None:
    """Read all there is. Raises lmdb.Error, or ends the process, at what cannot be read."""
    with (
        lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=64) as env,
        env.begin() as txn,
    ):
        for name, _ in txn.cursor():
            deque(txn.cursor(env.open_db(name, txn, create=False)), maxlen=0)


if __name__ == "__main__":
    main(sys.argv[1])
