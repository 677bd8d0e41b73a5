"""Search once, for the question, and answer from what was found (FlashRAG's ``naive``)."""

from __future__ import annotations

from search_agent.methods.base import SHORT_ANSWER, Config, Method


class Rag(Method):
    """One turn."""

    name = "rag"
    shows = "newest"
    instruction = f"Some documents that may help stand below. {SHORT_ANSWER}"


def build(config: Config) -> Rag:
    """Make the protocol."""
    return Rag(config)


__all__ = ["Config", "build"]
