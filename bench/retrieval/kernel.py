"""The compiled kernel against ``bm25s``'s own over one index: top 3, batches of 512, one thread, and equal scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import bm25s.numba.retrieve_utils as theirs
import numpy as np
import numpy.typing as npt

from bench.harness import Figure, main
from bench.retrieval import world
from search_agent.retrieval.backends.maxscore import MaxScoreKernel
from search_agent.retrieval.index import index_files
from search_agent.retrieval.index.analysis import Analyzer
from search_agent.retrieval.index.postings import Batch, Postings, Range

BATCH = 512
REPEATS = 5
TOLERANCE = 1e-5
Scores = npt.NDArray[Any]


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` uses 50,000 passages instead of 1,000,000."""
    num_passages = 50_000 if quick else 1_000_000
    _, folder = world.indexed(num_passages)
    postings = index_files.open_postings(folder, num_passages)
    batch, kernel = _batch(postings), MaxScoreKernel(postings)
    for k in (3, 20):
        (ours_s, ours), (theirs_s, others) = (
            _best_of(partial(_ours, kernel, batch, postings.num_docs, k)),
            _best_of(partial(_bm25s, postings, batch, k)),
        )
        ratio = theirs_s / ours_s
        name = f"queries per CPU second at top {k}, ours / bm25s"
        yield Figure.at_least(name, ratio, "x", 1.5).judged(k == 3)
        yield Figure(f"queries per CPU second at top {k}, ours", BATCH / ours_s, "1/s")
        difference = float(np.abs(ours - others).max())
        yield Figure.at_most(f"largest difference of scores at top {k}", difference, "", TOLERANCE)


def _batch(postings: Postings) -> Batch:
    analyzer, vocabulary = Analyzer(), postings.vocabulary
    rows = [[vocabulary[t] for t in analyzer.terms(q) if t in vocabulary] for q in world.queries(BATCH)]
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Batch(np.asarray([number for row in rows for number in row], np.int64), offsets)


def _ours(kernel: MaxScoreKernel, batch: Batch, num_docs: int, k: int) -> Scores:
    return kernel(batch, Range(0, num_docs), k)[1]


def _bm25s(postings: Postings, batch: Batch, k: int) -> Scores:
    scores, _ = theirs._retrieve_internal_jitted_serial(
        query_tokens_ids_flat=batch.terms.astype(np.int32),
        query_pointers=batch.offsets.astype(np.int32),
        k=k,
        sorted=True,
        dtype=np.dtype("float32"),
        int_dtype=np.dtype("int32"),
        data=postings.scores,
        indptr=postings.starts,
        indices=postings.docs,
        num_docs=postings.num_docs,
    )
    return np.asarray(scores)


def _best_of(call: Callable[[], Scores]) -> tuple[float, Scores]:
    """CPU seconds of the best of some repeats (after one that compiles), and the result."""
    result, seconds = call(), []
    for _ in range(REPEATS):
        began = time.process_time()
        result = call()
        seconds.append(time.process_time() - began)
    return min(seconds), result


if __name__ == "__main__":
    main(figures)
