"""The passages that the teacher's searches return: found by the BM25 that serves the live environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from preprocess.embedded.facts import World, passages
from preprocess.embedded.styles import PASSAGES_PER_SEARCH
from search_agent.retrieval.types import Document


def retriever(world: World) -> Callable[[str], Sequence[Document]]:
    """Searches the world's corpus; a query that was asked before is remembered."""
    from search_agent.retrieval.backends.bm25 import Bm25
    from search_agent.retrieval.index.postings import build_postings

    corpus = passages(world)
    engine = Bm25(build_postings(passage.record()["contents"] for passage in corpus))

    @cache
    def retrieve(query: str) -> tuple[Document, ...]:
        (hits,) = engine.search([query], PASSAGES_PER_SEARCH)
        found = [(corpus[hit.doc], hit.score) for hit in hits]
        return tuple(Document(passage.id, passage.title, passage.text, score) for passage, score in found)

    return retrieve
