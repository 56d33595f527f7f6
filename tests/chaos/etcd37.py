"""A real etcd 3.7, built from ``interop/etcd37`` by the Go toolchain into a cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "interop" / "etcd37"
BUILD_SECONDS = 900.0
BUILT_BY_HAND = "KVORUM_ETCD37"
"""Names a binary to take instead."""


def has_go() -> bool:
    """Whether `etcd37` can be expected to work."""
    return bool(os.environ.get(BUILT_BY_HAND)) or shutil.which("go") is not None


def etcd37() -> tuple[Path | None, str]:
    """The program, or why there is none. Built once for each state of the source."""
    given = os.environ.get(BUILT_BY_HAND)
    if given:
        return Path(given), ""
    go = shutil.which("go")
    if go is None:
        return None, "there is no Go toolchain"
    folder = _cache() / _fingerprint()
    program = folder / "etcd"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            why = _build(go, program)
            if why:
                return None, why
    return program, ""


def _build(go: str, program: Path) -> str:
    half = program.with_suffix(".new")
    command = [go, "build", "-trimpath", "-o", str(half), "."]
    try:
        done = subprocess.run(
            command, cwd=SOURCE, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"go build took more than {BUILD_SECONDS:g} s"
    if done.returncode != 0:
        return f"go build failed: {done.stderr.strip()[-500:]}"
    half.rename(program)
    return ""


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "kvorum" / "etcd37"


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
