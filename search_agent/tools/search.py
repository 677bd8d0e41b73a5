"""The tool ``search``: the passages that a query finds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from search_agent.retrieval.types import Document, SearchResult
from search_agent.tools.base import Caller, Retriever, Tool
from verl.errors import at_least


@dataclass(frozen=True)
class Config:
    """Settings of a search."""

    excerpt_words: int | None = None
    """How much of a passage a search shows, with the passage's id at the end, for the tool ``open`` (words); null shows
    passages whole."""

    def __post_init__(self) -> None:
        at_least(self, 1, "excerpt_words")


class Search(Tool):
    """Asks the retriever, and remembers what it found for the episode's other tools."""

    def __init__(self, config: Config, retriever: Retriever, top_k: int) -> None:
        self._words, self._retriever, self._top_k = config.excerpt_words, retriever, top_k

    async def call(self, request: str, caller: Caller) -> SearchResult:
        """The documents, best first; each cut to its first words where the configuration says so."""
        result = await self._retriever.search(request, self._top_k)
        caller.seen.update((document.id, document) for document in result.documents)
        caller.newest[:] = [document.id for document in result.documents]
        if self._words is None:
            return result
        return replace(result, documents=tuple(excerpt(document, self._words) for document in result.documents))


def excerpt(document: Document, words: int) -> Document:
    """The document's first words, and its id to open it by."""
    begin = " ".join(document.text.split()[:words])
    return document._replace(text=f"{begin} ... (id: {document.id})")


def build(config: Config, *, retriever: Retriever, top_k: int) -> Search:
    """Make the tool."""
    return Search(config, retriever, top_k)
