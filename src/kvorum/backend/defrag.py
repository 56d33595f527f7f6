"""Defragmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Defrag:
    def add(self, batches: Any) -> None: ...


def remove_leftovers(path: Path) -> None: ...
