"""What the entry points share: reading the command line, help, and how errors look to a person."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from search_agent.config import NOT_RESULTS, RunConfig
from search_agent.console.help import command_help
from verl.config.build import build, to_dict
from verl.config.compose import compose, config_hash
from verl.errors import InfrastructureError, UserError

__all__ = ["NOT_RESULTS", "load_config", "results_config", "run_command", "run_path"]


def load_config(arguments: Sequence[str]) -> RunConfig:
    """The configuration that presets and overrides make. Raises UserError, one line a fault."""
    return build(RunConfig, compose("train", arguments))


def run_path(config: RunConfig) -> Path:
    """Where the run's folder is, or will be."""
    return Path(config.run_dir or f"runs/{config.name}-{config_hash(results_config(config))}")


def results_config(config: RunConfig) -> dict[str, Any]:
    """The keys that decide what a run computes: two runs that share them are one."""
    return {key: value for key, value in to_dict(config).items() if key not in NOT_RESULTS}


def words_and_options(arguments: Sequence[str], known: Sequence[str], usage: str) -> tuple[list[str], dict[str, str]]:
    """The words and the ``key=value`` options of a small command. Raises UserError on an option that is not known."""
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    words = [argument for argument in arguments if "=" not in argument]
    wrong = [key for key in options if key not in known]
    wrong += [word for word in words if word.startswith("-") and word not in known]
    if wrong:
        raise UserError(f"{wrong[0]}: no such option; {usage}")
    return words, options


def run_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str], *, help_of: str = "") -> int:
    """Run an entry point: mistakes and outages end as one clear message, the last thing on screen.

    ``-h`` and ``--help`` print the help of the command ``help_of`` instead, if one is named.
    """
    try:
        if help_of and not {"-h", "--help"}.isdisjoint(arguments):
            print(command_help(help_of))
            return 0
        return main(arguments)
    except KeyboardInterrupt:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        return 130
    except BaseException as error:
        cause = first_known(error)
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
        return 2 if isinstance(cause, UserError) else 3


def first_known(error: BaseException) -> UserError | InfrastructureError | None:
    """The first error meant for a person in an exception or a group of them; a place that may not be written is one."""
    if isinstance(error, UserError | InfrastructureError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((known for inner in error.exceptions if (known := first_known(inner))), None)
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES) and error.filename:
        return UserError(f"{error.filename}: {error.strerror}; run_dir= and the keys of data= name other places")
    return None
