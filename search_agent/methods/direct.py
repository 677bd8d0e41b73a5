"""Answer at once, without a search (FlashRAG's ``zero-shot``)."""

from __future__ import annotations

from search_agent.methods.base import Config, Method


class Direct(Method):
    """One turn."""

    name = "direct"
    begins_with_search = False


def build(config: Config) -> Direct:
    """Make the protocol."""
    return Direct(config)


__all__ = ["Config", "build"]
