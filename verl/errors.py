"""The errors a person is meant to read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in what the user gave (a key, a file, a port): one message that names the thing and the remedy.

    Entry points print it as a single line, without a traceback, and exit with status 2.
    """


class InfrastructureError(RuntimeError):
    """Something outside the policy failed (a server, a process, a disk): nothing here may count as a wrong answer."""


class EngineDiedError(InfrastructureError):
    """A rollout worker's engine cannot go on, though its process lives: the worker has to be started again."""


@contextmanager
def noted(faults: list[str]) -> Iterator[None]:
    """Add the lines of a UserError that the block raises to ``faults``, so that all are told at once."""
    try:
        yield
    except UserError as error:
        faults += str(error).splitlines()


def refuse(faults: Iterable[str]) -> None:
    """Raise UserError with every fault, each once and on a line of its own; nothing happens if there is none."""
    if lines := list(dict.fromkeys(faults)):
        raise UserError("\n".join(lines))


def require(holds: bool, key: str, value: object, remedy: str) -> None:
    """Raise a UserError that names the key, its value and the remedy unless ``holds``."""
    if not holds:
        raise UserError(f"{key}={'null' if value is None else value}: {remedy}")


def at_least(config: object, minimum: float, *keys: str) -> None:
    """Raise a UserError for the first of these keys of ``config`` that is below ``minimum``; null is let through."""
    within(config, minimum, math.inf, *keys)


def above(config: object, bound: float, *keys: str, most: float = math.inf) -> None:
    """Raise a UserError for the first of these keys of ``config`` that is not above ``bound``, or is above ``most``."""
    for key in keys:
        value = getattr(config, key)
        remedy = f"write a number above {bound}" + (f", at most {most}" if most < math.inf else "")
        require(value is None or bound < value <= most, key, value, remedy)


def within(config: object, low: float, high: float, *keys: str) -> None:
    """Raise a UserError for the first of these keys of ``config`` that is below ``low`` or above ``high``."""
    for key in keys:
        value = getattr(config, key)
        remedy = f"write {low} or more" if high == math.inf else f"write {low} to {high}"
        require(value is None or low <= value <= high, key, value, remedy)
