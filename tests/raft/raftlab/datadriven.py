"""The layout of trace files: commands, ``----``, and what must come out.

    # a comment
    command 1 key=value list=(1,2)
    input, if any
    ----
    output, up to an empty line

Output that has empty lines itself stands between two doubled ``----``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SEPARATOR = "----"

_ARGUMENT = re.compile(r"\s*([^\s=]+)(?:=(\([^)]*\)|\S*))?")


@dataclass
class Argument:
    """``key`` alone has no values; ``key=v`` has one, ``key=(a,b)`` has two."""

    key: str
    values: list[str] = field(default_factory=list)


@dataclass
class Case:
    """One command with the output it must have."""

    line: int
    command: str
    arguments: list[Argument]
    input: str
    expected: str

    def numbers(self) -> list[int]:
        """The arguments without a value, as numbers."""
        return [int(argument.key) for argument in self.arguments if not argument.values]

    def options(self) -> dict[str, list[str]]:
        """The arguments with values."""
        return {argument.key: argument.values for argument in self.arguments if argument.values}


def _parse_directive(text: str) -> tuple[str, list[Argument]]:
    command, *found = _ARGUMENT.findall(text)
    arguments = []
    for key, raw in found:
        inner = raw[1:-1] if raw.startswith("(") else raw
        values = [value.strip() for value in inner.split(",")] if raw else []
        arguments.append(Argument(key, values))
    return command[0], arguments


def parse(text: str) -> list[Case]:
    """Every case of a trace file, in order."""
    lines = text.split("\n")
    cases = []
    place = 0
    while place < len(lines):
        line = lines[place].strip()
        place += 1
        if not line or line.startswith("#"):
            continue
        start = place
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + lines[place].strip()
            place += 1
        command, arguments = _parse_directive(line)
        given: list[str] = []
        while place < len(lines) and lines[place] != SEPARATOR:
            given.append(lines[place])
            place += 1
        expected, place = _read_output(lines, place + 1)
        cases.append(Case(start, command, arguments, "\n".join(given).strip(), expected))
    return cases


def _read_output(lines: list[str], place: int) -> tuple[str, int]:
    doubled = place < len(lines) and lines[place] == SEPARATOR
    if doubled:
        end = place + 1
        while lines[end : end + 2] != [SEPARATOR, SEPARATOR]:
            end += 1
        return "".join(line + "\n" for line in lines[place + 1 : end]), end + 2
    end = place
    while end < len(lines) and lines[end].strip():
        end += 1
    return "".join(line + "\n" for line in lines[place:end]), end


def replay(file: Path, handle: Callable[[Case], str]) -> None:
    """Run every case of ``file`` and compare its output to the letter."""
    for case in parse(file.read_text()):
        output = handle(case)
        if output and not output.endswith("\n"):
            output += "\n"
        assert output == case.expected, f"{file.name}:{case.line}: {case.command}"
