"""The errors a person is meant to read."""

from __future__ import annotations

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
