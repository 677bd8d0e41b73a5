"""BM25 over an inverted index.

A passage that shares no term with the query is never returned, and equal scores stand in corpus order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from search_agent.retrieval.backends.backend import Backend, Hit
from search_agent.retrieval.index.analysis import Analyzer
from search_agent.retrieval.index.postings import Batch, Found, Postings, Range


class Kernel(Protocol):
    """Searches one index."""

    name: str
    """As ``/info`` shows it."""

    def __call__(self, batch: Batch, docs: Range, k: int) -> Found:
        """The best among ``docs`` for each query, scores above 0, best first, ties by number.

        A score is the float64 sum of the float32 scores of the index.
        """


MIN_POSTINGS_TO_COMPILE = 1_000_000
"""From here on the compiled kernel serves (about 15,000 passages of 100 words): below it, adding up with NumPy takes
less than a millisecond a query and a server starts without importing numba."""


class Bm25(Backend):
    """One index, any number of threads."""

    max_batch = 32

    def __init__(self, postings: Postings, docs: Range | None = None, kernel: Kernel | None = None) -> None:
        self._postings = postings
        self._docs = docs or Range(0, postings.num_docs)
        self._kernel = kernel or choose_kernel(postings)
        self._local = threading.local()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        rows = [self._numbers(query) for query in queries]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        batch = Batch(np.asarray([number for row in rows for number in row], np.int64), offsets)
        docs, scores, counts = self._kernel(batch, self._docs, k)
        pairs = zip(docs.tolist(), scores.tolist(), counts.tolist(), strict=True)
        return [[Hit(*pair) for pair in zip(d[:count], s[:count], strict=True)] for d, s, count in pairs]

    def manifest(self) -> dict[str, Any]:
        return {
            "name": "bm25",
            "k1": self._postings.k1,
            "b": self._postings.b,
            "analysis": "lower case, English stop words, Snowball english",
            "terms": len(self._postings.vocabulary),
            "postings": len(self._postings.docs),
        }

    def implementation(self) -> str:
        return self._kernel.name

    def _numbers(self, query: str) -> list[int]:
        vocabulary = self._postings.vocabulary
        analyzer: Analyzer | None = getattr(self._local, "analyzer", None)
        if analyzer is None:
            analyzer = self._local.analyzer = Analyzer()
        return [vocabulary[term] for term in analyzer.terms(query) if term in vocabulary]


def choose_kernel(postings: Postings) -> Kernel:
    """The quicker kernel for an index of this size; both give the same answers."""
    if len(postings.docs) < MIN_POSTINGS_TO_COMPILE:
        return NumpyKernel(postings)
    from search_agent.retrieval.backends.maxscore import MaxScoreKernel

    return MaxScoreKernel(postings)


class NumpyKernel:
    """Adds up every posting of every term: the plain reading of the formula."""

    name = "numpy"

    def __init__(self, postings: Postings) -> None:
        self._postings = postings

    def __call__(self, batch: Batch, docs: Range, k: int) -> Found:
        """Search."""
        postings = self._postings
        k = min(k, docs.stop - docs.start)
        num_queries = len(batch.offsets) - 1
        found, scores = np.zeros((num_queries, k), np.int64), np.zeros((num_queries, k), np.float64)
        counts = np.zeros(num_queries, np.int64)
        for query in range(num_queries):
            totals = np.zeros(docs.stop - docs.start, np.float64)
            for term in batch.terms[batch.offsets[query] : batch.offsets[query + 1]].tolist():
                low, high = postings.starts[term], postings.starts[term + 1]
                low, high = low + np.searchsorted(postings.docs[low:high], (docs.start, docs.stop))
                totals[postings.docs[low:high] - docs.start] += postings.scores[low:high]
            places, best_totals = best(totals, k)
            counts[query] = len(places)
            found[query, : len(places)] = places + docs.start
            scores[query, : len(places)] = best_totals
        return found, scores, counts


def best(totals: npt.NDArray[np.float64], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The k highest totals above 0 and their positions, highest first, ties by position."""
    found = np.flatnonzero(totals > 0)
    values = totals[found]
    if len(found) > k > 0:
        worst = np.partition(values, len(values) - k)[len(values) - k]
        kept = values >= worst
        found, values = found[kept], values[kept]
    order = np.argsort(-values, kind="stable")[:k]
    return found[order], values[order]
