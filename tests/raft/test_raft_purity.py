"""The core knows no clock, socket, disk, thread or loop, and nothing above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvorum.raft

FILES = sorted(Path(kvorum.raft.__file__).parent.glob("*.py"))

# ``random`` is there for the type of the generator that is passed in, and its default.
ALLOWED = {
    "__future__",
    "collections",
    "collections.abc",
    "contextlib",
    "dataclasses",
    "enum",
    "random",
    "typing",
    "kvorum.types",
}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_imports(file):
    strangers = {name for name in imported(file) - ALLOWED if not name.startswith("kvorum.raft")}
    assert strangers == set()


def test_only_the_settings_know_a_random_source():
    assert [file.stem for file in FILES if "random" in imported(file)] == ["config"]
