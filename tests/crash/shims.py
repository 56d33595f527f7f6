"""Libraries that are loaded into a server to come between it and the kernel."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path
from typing import Final

from support.member import Member
from support.need import allow

WAYS: Final = {
    "by the kernel": {},
    "no room for it": {"REFUSE_SHIM_CALL": "io_submit", "REFUSE_SHIM_ERRNO": str(errno.EAGAIN)},
    "refused": {"REFUSE_SHIM_CALL": "io_submit", "REFUSE_SHIM_ERRNO": str(errno.EINVAL)},
    "not there": {"REFUSE_SHIM_CALL": "io_setup", "REFUSE_SHIM_ERRNO": str(errno.ENOSYS)},
}
"""How the log may come to be synced: beside the loop, or by a thread for one of three reasons."""


def build(folder: Path, *names: str) -> str:
    """Compile shims into ``folder``; what LD_PRELOAD has to be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    allow(compiler is not None, "no C compiler for the shim")
    built = []
    for name in names:
        library = folder / f"{name}.so"
        source = Path(__file__).with_name(f"{name}.c")
        flags = ["-shared", "-fPIC", "-O1", "-pthread", "-o", str(library)]
        subprocess.run([str(compiler), *flags, str(source), "-ldl"], check=True)
        built.append(str(library))
    return ":".join(built)


def check_way(member: Member, way: str) -> None:
    """The log, on info level, says which way was taken."""
    by_thread = "the write-ahead log is synced by a thread" in member.log_text()
    assert by_thread == (way in ("refused", "not there")), member.log_text()
