"""The errors a person is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave (a key, a file, a port): one message that names the thing and the remedy.

    Entry points print it as a single line, without a traceback, and exit with status 2.
    """


class InfrastructureError(RuntimeError):
    """Something outside the policy failed (a server, a process, a disk): nothing here may count as a wrong answer."""


class EngineDiedError(InfrastructureError):
    """A rollout worker's engine cannot go on, though its process lives: the worker has to be started again."""
