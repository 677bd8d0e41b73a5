"""Two rankings as one, by reciprocal rank fusion: a passage scores the sum of 1 / (60 + its rank) over the rankings.

Cormack, Clarke and Buettcher, SIGIR 2009, whose constant 60 is kept. Ranks need no common scale, which the scores of
words and vectors do not have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from search_agent.retrieval.backends.backend import Backend, Hit

RANK_OFFSET = 60
MIN_DEPTH = 100
"""Hits of each ranking that are fused at least; below, a passage that both rank tenth could be missed."""


class Hybrid(Backend):
    """Fuses two back ends."""

    def __init__(self, *backends: Backend) -> None:
        self._backends = backends
        self.max_batch = max(backend.max_batch for backend in backends)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        rankings = [backend.search(queries, max(k, MIN_DEPTH)) for backend in self._backends]
        return [fuse(rows, k) for rows in zip(*rankings, strict=True)]

    def manifest(self) -> dict[str, Any]:
        parts = [backend.manifest() for backend in self._backends]
        return {"name": "hybrid", "fusion": f"reciprocal rank, {RANK_OFFSET}", "parts": parts}

    def implementation(self) -> str:
        return " + ".join(backend.implementation() for backend in self._backends)


def fuse(rankings: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    """The k best of several rankings, best first, ties by number."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            scores[hit.doc] += 1 / (RANK_OFFSET + rank)
    return [Hit(doc, score) for doc, score in sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]]
