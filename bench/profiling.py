"""One workload with the Kvorum member under cProfile."""

from __future__ import annotations

import io
import pstats
import shutil
import sys
from pathlib import Path
from typing import Final

from bench.members import Member, Program
from bench.wire import LoadError
from bench.workloads import Offered, Settings, Workload

LAUNCHER: Final = Path(__file__).with_name("profiled.py")
LINES: Final = 40
PROFILED_RATE: Final = 2_000
"""Puts/s offered to a profiled member, which is several times slower than usual."""


def profile(
    program: Program, workload: Workload, settings: Settings, root: Path, output: Path
) -> str:
    """The functions that took most of the event loop's time; ``output`` gets the raw profile.

    Only the main thread is profiled, which holds the event loop. The program must be a Python
    script. Raises LoadError when it left no profile.
    """
    if isinstance(workload, Offered):
        workload.rate = PROFILED_RATE
    script = shutil.which(program.command[0]) or program.command[0]
    command = (sys.executable, str(LAUNCHER), str(output), script)
    member = Member(Program(program.label, command), root / "profile")
    output.unlink(missing_ok=True)
    try:
        member.start()
        workload.prepare(member)
        sample = workload.round(member, 0, settings)
        member.stop()
        if not output.exists():
            raise LoadError(f"no profile was written: {member.log_tail()}")
    finally:
        member.discard()
    text = io.StringIO()
    stats = pstats.Stats(str(output), stream=text)
    stats.strip_dirs().sort_stats("tottime").print_stats(LINES)
    return f"{text.getvalue()}\n{workload.name}: {sample['rate']:,.0f} operations/s\n{output}"
