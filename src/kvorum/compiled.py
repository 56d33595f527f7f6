"""Compiled modules or their sources: which of the two this process runs.

The hot, typed modules (the list is in ``setup.py``) may have been compiled by mypyc. Their sources
lie beside the results, say the same, and are used instead

- if ``KVORUM_PLAIN`` is set: to debug, to trace, to try a change;
- in a checkout, if any source has changed since the build, as a part of the old program would
  otherwise run with a part of the new one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import FileFinder, SourceFileLoader
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

STAMP: Final = "_compiled.txt"
"""What a build in a checkout leaves beside this file: a line for each source with its modification
time, in nanoseconds, and its path. An installed package has none, as nobody edits it."""

_ROOT: Final = os.path.dirname(os.path.abspath(__file__))


def stamp(root: Path) -> str:
    """The stamp of the sources below ``root``, as they are now."""
    sources = sorted(root.rglob("*.py"))
    return "".join(f"{p.stat().st_mtime_ns} {p.relative_to(root)}\n" for p in sources)


def is_stale() -> bool:
    """Whether a source has changed, or gone, since the build in this checkout."""
    try:
        with open(os.path.join(_ROOT, STAMP)) as file:
            lines = file.read().splitlines()
        times = [line.split(" ", 1) for line in lines]
        return any(os.stat(os.path.join(_ROOT, p)).st_mtime_ns != int(at) for at, p in times)
    except FileNotFoundError as missing:
        return not missing.filename.endswith(STAMP)


def choose() -> None:
    """To be called before any module that may be compiled is imported."""
    if os.environ.get("KVORUM_PLAIN") or is_stale():
        sys.path_hooks.insert(0, _find_sources)
        sys.path_importer_cache.pop(_ROOT, None)


def _find_sources(path: str) -> FileFinder:
    if path != _ROOT and not path.startswith(_ROOT + os.sep):
        raise ImportError("not a folder of this package")
    return FileFinder(path, (SourceFileLoader, [".py"]))


def in_use() -> bool:
    """Whether the modules that are hot run as compiled."""
    spec = importlib.util.find_spec("kvorum.raft.core")
    assert spec is not None
    return not str(spec.origin).endswith(".py")
