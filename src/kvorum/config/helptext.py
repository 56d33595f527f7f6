"""The texts of --help and --version."""

from __future__ import annotations

import textwrap
from typing import Final

from kvorum.config.gates import GATES
from kvorum.config.server import all_settings
from kvorum.config.spec import Setting

USAGE: Final = """\
Usage:

  kvorum [flags]
    Run a member.

  kvorum --config-file <path>
    Run a member with the settings of a YAML file. Other flags and the environment are then
    ignored. Durations in the file are integer nanoseconds (600000000000 for 10m).

  kvorum --version
    Print the version and exit.

  kvorum -h | --help
    Print this help and exit.

Every flag can be given as a variable too: --some-flag is ETCD_SOME_FLAG.
"""

CAUTION: Final = """\
Take care with the unsafe ones: they break what the consensus protocol promises.
"""


def help_text() -> str:
    lines = [USAGE]
    section = ""
    for made in all_settings():
        if not made.is_flag:
            continue
        if made.section != section:
            section = made.section
            lines.append(f"\n{section}:")
        lines.extend(_describe(made))
    return "\n".join([*lines, "", CAUTION])


def _describe(made: Setting) -> list[str]:
    default = made.effective or made.kind.show(made.default)
    text = made.text + (" Deprecated." if made.deprecated else "")
    lines = [f"  --{made.name} '{default}'"]
    lines += textwrap.wrap(
        text, 96, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )
    if made.name == "feature-gates":
        for gate in sorted(GATES.values()):
            lines.append(f"    {gate.name} ({gate.stage}, {str(gate.default).lower()} by default):")
            lines.append(f"      {gate.meaning}")
    return lines
