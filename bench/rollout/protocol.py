"""A protocol for a policy that has learned nothing: whatever it writes is a query, until its turns are used up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from search_agent.protocols.actions import Action, Call, Turns
from search_agent.protocols.autorefine import AutoRefine
from search_agent.protocols.autorefine import Config as AutoRefineConfig


@dataclass(frozen=True)
class Config:
    """What ends a turn."""

    stop: str
    """The stop string."""


class AlwaysSearch(AutoRefine):
    """AutoRefine's prompt and observations around turns that all search."""

    def __init__(self, config: Config) -> None:
        super().__init__(AutoRefineConfig())
        self.stop = (config.stop,)

    def parse(self, turns: Turns) -> Action:
        """The query is a digest of the turn: as good as unique, and the same for the same turn in another arm."""
        return Call("search", hashlib.blake2b(turns.newest.encode(), digest_size=8).hexdigest())


def build(config: Config) -> AlwaysSearch:
    """Make the protocol."""
    return AlwaysSearch(config)
