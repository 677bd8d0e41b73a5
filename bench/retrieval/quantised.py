"""A quantised inverted file with refinement against a batched flat search: recall at 3, and queries per CPU second.

Vectors: 768 numbers, a mixture of 2,000 Gaussian clusters in 128 latent dimensions, projected, with noise, scaled to
length 1 (seed 0); a query is a passage's vector with noise added. Real encoders spread differently: recall on the
vectors of your own corpus decides.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Iterator

import faiss
import numpy as np
import numpy.typing as npt

from bench.harness import Figure, main
from search_agent.retrieval.backends import dense

DIMENSIONS, LATENT, CLUSTERS = 768, 128, 2_000
NOISE, QUERY_NOISE = 0.02, 0.02
NUM_QUERIES = 512
PROBES = 16
K = 3
BLOCK = 50_000
Vectors = npt.NDArray[np.float32]


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` uses 50,000 vectors and 256 lists instead of 1,000,000 and 2,048."""
    num_vectors, lists = (50_000, 256) if quick else (1_000_000, 2_048)
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = dense.SCAN_BELOW_QUERIES * DIMENSIONS
    vectors, queries = _world(num_vectors)
    flat = dense.make_index("Flat", vectors)
    quantised = dense.make_index(f"IVF{lists},RaBitQfs,Refine(SQ8)", vectors)
    dense.set_probes(quantised, PROBES)
    flat_s, exact = _timed(flat, queries)
    fast_s, found = _timed(quantised, queries)
    shared = [len(set(a) & set(b)) / K for a, b in zip(exact, found, strict=True)]
    yield Figure.at_least("recall at 3", float(np.mean(shared)), "", 0.97)
    name, ratio = "queries per CPU second, quantised / flat", flat_s / fast_s
    # Few vectors are quickly scanned: the gain grows with their number.
    yield Figure.at_least(name, ratio, "x", 30).judged(not quick)
    yield Figure("queries per CPU second, quantised", NUM_QUERIES / fast_s, "1/s")
    yield Figure("queries per CPU second, flat", NUM_QUERIES / flat_s, "1/s")


def _world(num_vectors: int) -> tuple[Vectors, Vectors]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, LATENT)).astype(np.float32)
    projection = rng.normal(size=(LATENT, DIMENSIONS)).astype(np.float32) / np.sqrt(LATENT)
    vectors = np.empty((num_vectors, DIMENSIONS), np.float32)
    for start in range(0, num_vectors, BLOCK):
        size = min(BLOCK, num_vectors - start)
        latent = centres[rng.integers(0, CLUSTERS, size)] + 0.5 * rng.normal(size=(size, LATENT)).astype(np.float32)
        vectors[start : start + size] = _scaled(latent @ projection) + _noise(rng, size, NOISE)
    vectors = _scaled(vectors)
    return vectors, _scaled(vectors[rng.integers(0, num_vectors, NUM_QUERIES)] + _noise(rng, NUM_QUERIES, QUERY_NOISE))


def _noise(rng: np.random.Generator, size: int, scale: float) -> Vectors:
    return scale * rng.standard_normal((size, DIMENSIONS), np.float32)


def _scaled(rows: Vectors) -> Vectors:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _timed(index: object, queries: Vectors) -> tuple[float, list[list[int]]]:
    """CPU seconds for one batch of all queries, after a small one, and what was found."""
    dense.nearest(index, queries[:8], K)
    began = time.process_time()
    found = dense.nearest(index, queries, K)
    return time.process_time() - began, [[hit.doc for hit in hits] for hits in found]


if __name__ == "__main__":
    main(figures)
