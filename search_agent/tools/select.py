"""The tool ``select``: passages of the newest search, whole, in the order in which the policy named their numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from search_agent.retrieval.types import SearchResult
from search_agent.tools.base import BadRequest, Caller, Retriever, Tool
from verl.errors import at_least


@dataclass(frozen=True)
class Config:
    """Settings of a choice."""

    most: int = 3
    """How many passages a choice shows; further numbers are left out. 3 as ExSearch shows."""

    def __post_init__(self) -> None:
        at_least(self, 1, "most")


class Select(Tool):
    """Looks into what the newest search found; asks nobody."""

    def __init__(self, most: int) -> None:
        self._most = most

    async def call(self, request: str, caller: Caller) -> SearchResult:
        """The documents of the numbers in the request, from 1. Raises BadRequest for one that was not shown."""
        numbers = list(dict.fromkeys(int(digits) for digits in re.findall(r"\d{1,9}", request)))
        if not numbers or not all(1 <= number <= len(caller.newest) for number in numbers):
            raise BadRequest(f"the newest search found {len(caller.newest)} passages, and the choice names others")
        chosen = [caller.seen[caller.newest[number - 1]] for number in numbers[: self._most]]
        return SearchResult(tuple(chosen), latency_s=0.0, cached=True)


def build(config: Config, *, retriever: Retriever, top_k: int) -> Select:
    """Make the tool."""
    return Select(config.most)
