"""The tool ``open``: a passage that the episode has found, whole, by its id.

Only what this episode's searches found can be opened: no document is read that the retriever would not have given.
"""

from __future__ import annotations

from dataclasses import dataclass

from search_agent.retrieval.types import SearchResult
from search_agent.tools.base import BadRequest, Caller, Retriever, Tool


@dataclass(frozen=True)
class Config:
    """It has no settings."""


class Open(Tool):
    """Looks into what the episode has seen; asks nobody."""

    async def call(self, request: str, caller: Caller) -> SearchResult:
        """The one document. Raises BadRequest if no search of the episode found it."""
        document = caller.seen.get(request.strip())
        if document is None:
            raise BadRequest("no search has found a passage of that id")
        return SearchResult((document,), latency_s=0.0, cached=True)


def build(config: Config, *, retriever: Retriever, top_k: int) -> Open:
    """Make the tool."""
    return Open()
