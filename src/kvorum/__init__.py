"""Kvorum: etcd in Python.

``kvorum.embed`` runs a member inside a program; it is imported when it is first asked for, so that
the command line need not wait for it.
"""

from __future__ import annotations

import importlib
from typing import Any

from kvorum.compiled import choose
from kvorum.version import VERSION as __version__

choose()

__all__ = ["__version__", "embed"]


def __getattr__(name: str) -> Any:
    if name == "embed":
        return importlib.import_module("kvorum.embed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
