"""The tool ``query``: runs the one query that an episode ends with, deep into the ranking, and shows nothing.

What comes back is ids and scores; texts stay at the server, unless an answer is looked for in them: then the first
hundred passages are read, and deeper ones only where none of those holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from search_agent.evaluation.metrics import first_answer_rank
from search_agent.retrieval.types import Document, SearchResult
from search_agent.tools.base import Caller, Retriever, Tool
from verl.data.tasks import Task
from verl.errors import UserError, at_least

DEPTHS = (100, 1000)
"""How deep an answer is looked for before all ``k`` passages are read."""


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
        at_least(self, 1, "k")


class Query(Tool):
    """Asks the retriever for ids; where an answer is looked for, for texts, and only as deep as it must."""

    def __init__(self, config: Config, retriever: Retriever) -> None:
        self._config, self._retriever = config, retriever

    async def call(self, request: str, caller: Caller) -> SearchResult:
        """What was found, best first, with ``answer_rank`` (0: none) as a fact where an answer is looked for."""
        config = self._config
        text = executed(config.executed_text, caller.task.question, request)
        if config.answer_in is None:
            return await self._retriever.search(text, config.k, options=self._options(caller.task), ids_only=True)
        rank: int | None = None
        for depth in [depth for depth in DEPTHS if depth < config.k] + [config.k]:
            result = await self._retriever.search(text, depth, options=self._options(caller.task))
            passages = (_shown(document, config.answer_in) for document in result.documents)
            rank = first_answer_rank(passages, caller.task.golden_answers)
            if rank is not None or len(result.documents) < depth:
                break
        return replace(result, facts={"answer_rank": float(rank or 0)})

    def _options(self, task: Task) -> dict[str, str]:
        key = self._config.latest_date
        if key is None:
            return {}
        if key not in task.metadata:
            raise UserError(f"task {task.id}: its metadata has no {key}; write latest_date=null for the tool query")
        return {"date.to": str(task.metadata[key])}


def _shown(document: Document, where: str) -> str:
    return document.text if where == "text" else f"{document.title} {document.text}"


def executed(mode: str, question: str, query: str) -> str:
    """The text that is searched for."""
    if mode == "query":
        return query
    times = 1 if mode == "original_and_query" else max(1, len(query.split()) // 100)
    return " ".join([question] * times + [query])


def build(config: Config, *, retriever: Retriever, top_k: int) -> Query:
    """Make the tool."""
    return Query(config, retriever)
