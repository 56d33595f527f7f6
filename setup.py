"""Builds the hot modules with mypyc, from the same source that runs without it.

``KVORUM_COMPILE`` decides: 0 for no, 1 for a failure to be an error; otherwise what cannot be
compiled (there may be no C compiler) is left as it is and runs from source. All else is in
pyproject.toml. ``src/kvorum/compiled.py`` decides which of the two a process runs.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "src" / "kvorum"

HOT = {
    ".": "telemetry",
    "api": "kv unary watch",
    "backend": "backend layers recent view",
    "h2": (
        "assembly call client_core connection deadlines exchange frames heads hpack http http1 "
        "limits message method rules server server_core service status stream"
    ),
    "lease": "due lessor",
    "mvcc": (
        "history index kv revision store watch watch_batch watch_group watch_intervals "
        "watch_progress watch_source watch_stream watch_sync watch_types watch_wire"
    ),
    "pb": "wire",
    "peer": "framing message_codec msgapp_codec",
    "raft": (
        "codec core election following heartbeat log progress quorum rawnode read_only reads "
        "ready replication sizes step tracker types unstable wire"
    ),
    "server": (
        "applier diskthread header logwriter proposer quota raftnode ranges reads request txn"
    ),
    "wal": "encoder log record",
}
"""What a request passes on its way. Not the modules whose classes are subclassed elsewhere
(``raft.storage``), inherit from C types (``mvcc.tree``), or make classes of exceptions."""

WANTED = os.environ.get("KVORUM_COMPILE", "")


def main() -> None:
    os.chdir(ROOT)
    setup(ext_modules=_extensions(), cmdclass={"build_ext": BuildCompiled})


def _extensions() -> list[Extension]:
    if WANTED == "0" or not {"build_ext", "bdist_wheel", "editable_wheel"}.intersection(sys.argv):
        return []
    paths = [
        str((PACKAGE / folder / f"{name}.py").relative_to(ROOT))
        for folder, names in HOT.items()
        for name in names.split()
    ]
    said = io.StringIO()
    try:
        from mypyc.build import mypycify

        with redirect_stdout(said):
            # -O1: the gain is in the calls, and a build takes half the time.
            return list(mypycify(paths, opt_level="1", multi_file=True, group_name="kvorum"))
    except (Exception, SystemExit) as error:
        _give_up(f"mypyc: {error}\n{said.getvalue()}")
        return []


def _give_up(why: str) -> None:
    if WANTED == "1":
        raise SystemExit(f"cannot compile: {why}")
    print(f"not compiled, the package runs from its sources: {why}", file=sys.stderr)


class BuildCompiled(build_ext):
    """All modules or none: half of them could not be imported."""

    def run(self) -> None:
        try:
            _remove_built()
            super().run()
        except Exception as error:
            _remove_built()
            self.extensions = []
            _give_up(str(error))
            return
        if self.inplace and self.extensions:
            sys.path.insert(0, str(PACKAGE.parent))
            from kvorum import compiled

            (PACKAGE / compiled.STAMP).write_text(compiled.stamp(PACKAGE))


def _remove_built() -> None:
    """What an earlier build left in the checkout, perhaps of modules no longer on the list."""
    stamps = PACKAGE.glob("_compiled.*")
    for built in (*stamps, *PACKAGE.parent.glob("kvorum__mypyc.*.so"), *PACKAGE.rglob("*.so")):
        built.unlink()


main()
