"""Which of the two runs: the compiled modules or the sources."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvorum
from kvorum import compiled

PACKAGE = Path(kvorum.__file__).parent
BUILT = (PACKAGE / compiled.STAMP).exists() and not compiled.is_stale()

needs_build = pytest.mark.skipif(not BUILT, reason="the hot modules are not compiled here")


def in_use(folder: Path, **environment: str) -> str:
    plain = {k: v for k, v in os.environ.items() if k != "KVORUM_PLAIN"}
    script = "from kvorum import compiled; print(compiled.in_use())"
    env = {**plain, "PYTHONPATH": str(folder), **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package as it was built, to be edited."""
    for built in PACKAGE.parent.glob("kvorum__mypyc.*.so"):
        shutil.copy2(built, tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "kvorum")  # copies modification times too
    return tmp_path


@needs_build
def test_what_was_compiled_is_used(checkout: Path):
    assert in_use(checkout) == "True"


@needs_build
def test_the_sources_are_used_on_request(checkout: Path):
    assert in_use(checkout, KVORUM_PLAIN="1") == "False"


@needs_build
@pytest.mark.parametrize("source", ["raft/core.py", "cli/server.py"])
def test_an_edit_brings_the_sources_back(checkout: Path, source: str):
    with open(checkout / "kvorum" / source, "a") as file:
        file.write("\n")
    assert in_use(checkout) == "False"


@needs_build
def test_a_source_that_is_gone_brings_the_sources_back(checkout: Path):
    (checkout / "kvorum" / "embed.py").unlink()
    assert in_use(checkout) == "False"


def test_without_a_build_the_sources_are_used(tmp_path: Path):
    shutil.copytree(PACKAGE, tmp_path / "kvorum", ignore=shutil.ignore_patterns("*.so"))
    assert in_use(tmp_path) == "False"


def test_an_installed_package_is_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "_ROOT", str(tmp_path))
    assert not compiled.is_stale()


def hot_modules() -> set[str]:
    tree = ast.parse((PACKAGE.parents[1] / "setup.py").read_text())
    [found] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOT"
    ]
    folders: dict[str, str] = ast.literal_eval(found)
    return {
        ".".join(("kvorum", *folder.strip(".").split("/"), name)).replace("..", ".")
        for folder, names in folders.items()
        for name in names.split()
    }


def test_no_class_is_made_of_a_compiled_one_elsewhere():
    """mypyc's classes have no subclasses outside; what tries fails only when it is first made."""
    hot = hot_modules()
    assert "kvorum.raft.core" in hot
    assert "kvorum.telemetry" in hot
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(("kvorum", *path.relative_to(PACKAGE).with_suffix("").parts))
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        wrong += [
            f"{module}.{node.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and module not in hot
            for base in node.bases
            if imported.get(ast.unparse(base)) in hot
        ]
    assert wrong == []
