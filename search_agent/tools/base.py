"""What a tool is: something outside that an episode asks by name.

A call ends in one of three ways, and nobody may take one for another: a result, which is shown; a request that cannot
be carried out (``BadRequest``), which is the policy's fault, told to it and scored; an outage (InfrastructureError),
which aborts the episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from search_agent.retrieval.types import Document, SearchResult
from verl.data.tasks import Task


class Retriever(Protocol):
    """What answers a query; the retrieval client is one."""

    async def search(
        self, query: str, k: int, *, options: Mapping[str, Any] | None = None, ids_only: bool = False
    ) -> SearchResult:
        """Up to ``k`` documents, best first. Raises InfrastructureError when it failed for good, QueryRefused for a
        query that cannot be read.

        ``options`` narrow the search (a last date, say); with ``ids_only`` documents come without texts.
        """


class BadRequest(Exception):
    """The policy asked for what cannot be done; the message completes "That was not a valid action: ..."."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a tool may know of the episode that calls it."""

    task: Task
    seen: dict[str, Document] = field(default_factory=dict)
    """Documents that the episode's calls have found so far, whole, by id; tools add to it."""
    newest: list[str] = field(default_factory=list)
    """Ids of what the newest search found, in its order."""


class Tool:
    """One instance serves all episodes of a split. A plug-in's ``build(config, *, retriever, top_k)`` makes it."""

    async def open(self) -> None:
        """Connect; called once, on the event loop of the episodes."""

    async def call(self, request: str, caller: Caller) -> SearchResult:
        """Carry out one request. Raises BadRequest or InfrastructureError, as the module says."""
        raise NotImplementedError

    async def close(self) -> None:
        """Release what ``open`` took."""


Tools = Mapping[str, Tool]
