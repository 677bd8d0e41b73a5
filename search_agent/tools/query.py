"""The tool ``query``: runs the one query that an episode ends with, deep into the ranking, and shows nothing.

What comes back is ids and scores; texts stay at the server. Where an answer is looked for in passages, the server says
which passages hold one, so that thousands of texts do not travel for one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from search_agent.retrieval.types import SearchResult
from search_agent.tools.base import Caller, Retriever, Tool
from verl.errors import UserError


@dataclass(frozen=True)
class Config:
    """How a query is run."""

    k: int = 3000
    """Results asked for. 3000 as published."""
    executed_text: Literal["query", "original_and_query", "pseudo_document"] = "query"
    """What is searched for: what the policy wrote; the question and that; or that as a passage which might answer the
    question, with the question before it once for every 100 words (query2doc, arXiv 2303.07678)."""
    answer_in: Literal["text", "contents"] | None = None
    """Where an accepted answer is looked for, for the rank of the first passage that holds one: its text, or title and
    text, as published; null looks for none."""
    latest_date: str | None = None
    """Key of a task's metadata that holds the last day of publication that counts; null asks for none."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k is {self.k}: write 1 or more")


class Query(Tool):
    """Asks the retriever for ids."""

    def __init__(self, config: Config, retriever: Retriever) -> None:
        self._config, self._retriever = config, retriever

    async def call(self, request: str, caller: Caller) -> SearchResult:
        """The ids found, best first. Raises BadRequest if the engine refuses the query."""
        text = executed(self._config.executed_text, caller.task.question, request)
        options = self._options(caller)
        return await self._retriever.search(text, self._config.k, options=options, ids_only=True)

    def _options(self, caller: Caller) -> Mapping[str, Any]:
        options: dict[str, Any] = {}
        task, key = caller.task, self._config.latest_date
        if key is not None:
            if key not in task.metadata:
                raise UserError(
                    f"task {task.id}: its metadata has no {key}; write environment.tools.query.latest_date=null"
                )
            options["latest_date"] = str(task.metadata[key])
        if self._config.answer_in is not None:
            options["answers"] = list(task.golden_answers)
            options["answer_in"] = self._config.answer_in
        return options


def executed(mode: str, question: str, query: str) -> str:
    """The text that is searched for."""
    if mode == "query":
        return query
    times = 1 if mode == "original_and_query" else max(1, len(query.split()) // 100)
    return " ".join([question] * times + [query])


def build(config: Config, *, retriever: Retriever, top_k: int) -> Query:
    """Make the tool."""
    return Query(config, retriever)
