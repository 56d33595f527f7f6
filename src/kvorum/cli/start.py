"""From a command line to a running member, and to the exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from kvorum import failpoint, log
from kvorum.buildinfo import version_text
from kvorum.cli import process
from kvorum.config import ConfigError, FlagError, Resolved, ServerConfig, load
from kvorum.config.args import CommandLine
from kvorum.config.helptext import help_text
from kvorum.config.pending import pending
from kvorum.config.report import start_fields

SEE_HELP = "\nUsage: kvorum [flags]\nSee kvorum --help for all flags.\n"


def start(args: list[str]) -> int:
    """The exit code: 0 for help, version and a clean end, 1 for settings or a start that cannot
    be, 2 for a command line that does not parse."""
    process.take_default_signals()
    try:
        _start_failpoints()
        loaded = load(args, os.environ)
        if isinstance(loaded, CommandLine):
            sys.stdout.write(help_text() if loaded.wants_help else version_text())
            return 0
        configure_log(loaded.config)
    except FlagError as error:
        sys.stderr.write(f"{error}\n{SEE_HELP}")
        return 2
    except ConfigError as error:
        return _report_bad_settings(args, error)
    return _run(args, loaded)


def _start_failpoints() -> None:
    try:
        unknown = failpoint.start(os.environ)
    except (OSError, ValueError) as error:
        raise ConfigError(f"failpoints: {error}") from None
    if unknown:
        log.get_logger().warn("ignoring unknown failpoints", names=unknown)


def configure_log(config: ServerConfig) -> None:
    """Raises ConfigError when an output cannot be opened."""
    rotation = config.log_rotation_config_json if config.enable_log_rotation else None
    try:
        log.configure(
            level=config.log_level,
            format=config.log_format,
            outputs=config.log_outputs,
            rotation=rotation,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot open log output: {error}") from None


def _report_bad_settings(args: list[str], error: ConfigError) -> int:
    lg = log.get_logger()
    lg.info("Running: ", args=[sys.argv[0], *args])
    lg.warn("failed to verify flags", error=error)
    if "--advertise-client-urls is required" in str(error):
        lg.warn("advertise client URLs are not set", error=error)
    return 1


def _run(args: list[str], loaded: Resolved) -> int:
    lg = log.get_logger()
    lg.info("Running: ", args=[sys.argv[0], *args])
    for level, msg, fields in loaded.notices:
        {"info": lg.info, "warn": lg.warn}[level](msg, **fields)
    missing = pending(loaded.config)
    if missing:
        lg.fatal("cannot start with these settings", error="; ".join(missing))
    _look_at_data_dir(loaded.config)
    process.prepare()
    initialized = _is_initialized(loaded.config)
    lg.info(
        "starting an etcd server", **start_fields(loaded.config, member_initialized=initialized)
    )
    from kvorum.cli.run import (
        run,  # the member's own imports; mistakes above need not wait for them
    )

    return run(loaded.config)


def _is_initialized(config: ServerConfig) -> bool:
    """Whether the member has run before: it then has a log."""
    try:
        return any(name.endswith(".wal") for name in os.listdir(config.wal_path))
    except OSError:
        return False


def _look_at_data_dir(config: ServerConfig) -> None:
    """Log what is there. Exits when it cannot be read, or belongs to something else."""
    lg = log.get_logger()
    try:
        names = sorted(os.listdir(config.data_dir))
    except FileNotFoundError:
        names = []
    except OSError as error:
        _refuse_data_dir("failed to list data directory", config, error)
    for name in names:
        if name not in ("member", "proxy"):
            lg.warn(
                "found invalid file under data directory", filename=name, data_dir=config.data_dir
            )
    if "proxy" in names:
        _refuse_data_dir("v2 http proxy data in the data directory", config, None)
    if "member" in names:
        lg.info("server has already been initialized", data_dir=config.data_dir, dir_type="member")
    else:
        lg.info("Initialize and start etcd server", data_dir=config.data_dir, dir_type="empty")


def _refuse_data_dir(msg: str, config: ServerConfig, error: OSError | None) -> NoReturn:
    log.get_logger().fatal(msg, dir=config.data_dir, error=error)
