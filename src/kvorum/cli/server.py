"""``kvorum``: run a member. The entry point decides the cheap cases before anything is imported."""

from __future__ import annotations

import sys

_UNSTRIPPED = __debug__
_SUBCOMMANDS = ("gateway", "grpc-proxy")


def main(argv: list[str] | None = None) -> int:
    """Run the program with these arguments (without its name); the exit code.

    It does not return when a signal ended the server: the process then ends by that signal.
    """
    args = sys.argv[1:] if argv is None else argv
    if args in (["--version"], ["-version"]):
        from kvorum.buildinfo import version_text

        sys.stdout.write(version_text())
        return 0
    refusal = _refusal(args)
    if refusal:
        sys.stderr.write(f"kvorum: {refusal}\n")
        return 1
    from kvorum.cli.start import start

    return start(args)


def _refusal(args: list[str]) -> str:
    if not _UNSTRIPPED:
        return "will not run under python -O: its assertions guard the data, and -O strips them"
    if args and args[0] in _SUBCOMMANDS:
        return f"the subcommand {args[0]} is not supported by this version"
    return ""


if __name__ == "__main__":
    sys.exit(main())
