"""Answer from the context that a task brings in ``metadata.context`` (LongBench); nothing is searched for.

As in LongBench's code, a context that finds no room loses its middle.
"""

from __future__ import annotations

from search_agent.methods.base import SHORT_ANSWER, Config, Method


class Given(Method):
    """One turn."""

    name = "given"
    shows = "context"
    begins_with_search = False
    instruction = f"Read the text below. {SHORT_ANSWER}"


def build(config: Config) -> Given:
    """Make the protocol."""
    return Given(config)


__all__ = ["Config", "build"]
