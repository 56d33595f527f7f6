"""``python profiled.py OUTPUT SCRIPT [ARGUMENT...]``: run a script under cProfile.

As ``python -m cProfile``, but the profile is also written when the script ends by sending itself a
signal, as a server does that wants its parent to see why it ended.
"""

from __future__ import annotations

import cProfile
import os
import runpy
import sys


def run(output: str, script: str) -> None:
    """Run the script as the main module, with what is left of ``sys.argv``."""
    profiler = cProfile.Profile()
    kill = os.kill

    def write_and_kill(pid: int, number: int) -> None:
        if pid == os.getpid():
            profiler.disable()
            profiler.dump_stats(output)
        kill(pid, number)

    os.kill = write_and_kill
    profiler.enable()
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        profiler.disable()
        profiler.dump_stats(output)


if __name__ == "__main__":
    target, *sys.argv = sys.argv[1:]
    run(target, sys.argv[0])
