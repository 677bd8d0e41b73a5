"""Merges counted chunks, all sorted by term, into the arrays of an index: one block of terms in memory at a time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from search_agent.retrieval.index import index_files
from search_agent.retrieval.index.chunks import read_column, read_postings
from search_agent.retrieval.index.documents import OFFSETS_NAME
from search_agent.retrieval.index.postings import inverse_document_frequency, length_norms, score_counts, term_maxima
from search_agent.retrieval.index.progress import Progress

BLOCK_POSTINGS = 1_000_000


def write_offsets(work: Path, num_chunks: int) -> str:
    """Write where each document begins; returns the file's name."""
    sizes = read_column(work, num_chunks, "sizes")
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    np.save(work / OFFSETS_NAME, offsets)
    return OFFSETS_NAME


def merge(work: Path, num_chunks: int, num_terms: int) -> int:
    """Write the arrays of the index beside its chunks; returns the number of postings."""
    starts = _starts(work, num_chunks, num_terms)
    np.save(work / index_files.STARTS, starts)
    lengths = read_column(work, num_chunks, "lengths")
    mean_length = float(lengths.sum()) / len(lengths) or 1.0
    idf = inverse_document_frequency(np.diff(starts), len(lengths))
    docs_file = index_files.ArrayWriter(work / index_files.DOCS, "<i4", int(starts[-1]))
    scores_file = index_files.ArrayWriter(work / index_files.SCORES, "<f4", int(starts[-1]))
    maxima = np.zeros(num_terms, np.float32)
    progress, edges = Progress("merging"), _block_edges(starts)
    cuts = [np.searchsorted(read_postings(work, number)[:, 0], edges) for number in range(num_chunks)]
    for block, (low, high) in enumerate(pairwise(edges)):
        rows = np.concatenate([read_postings(work, n, *cut[block : block + 2]) for n, cut in enumerate(cuts)])
        rows = rows[np.argsort(rows[:, 0], kind="stable")]  # chunks are in the order of the corpus
        scores = score_counts(rows[:, 2], idf[rows[:, 0]], length_norms(lengths[rows[:, 1]], mean_length))
        docs_file.add(rows[:, 1])
        scores_file.add(scores)
        maxima[low:high] = term_maxima(scores, starts[low : high + 1] - starts[low])
        progress.show(len(lengths), float(starts[high] / max(1, starts[-1])))
    docs_file.close()
    scores_file.close()
    np.save(work / index_files.MAXIMA, maxima)
    return int(starts[-1])


def _starts(work: Path, num_chunks: int, num_terms: int) -> npt.NDArray[np.int64]:
    """Where the postings of each term begin; ``[terms + 1]``."""
    starts = np.zeros(num_terms + 1, np.int64)
    for number in range(num_chunks):
        starts[1:] += np.bincount(read_postings(work, number)[:, 0], minlength=num_terms)
    return np.cumsum(starts)


def _block_edges(starts: npt.NDArray[np.int64]) -> list[int]:
    """Term numbers that cut the index into blocks of at most ``BLOCK_POSTINGS`` postings, one term at least."""
    edges, num_terms = [0], len(starts) - 1
    while edges[-1] < num_terms:
        low = edges[-1]
        high = int(np.searchsorted(starts, starts[low] + BLOCK_POSTINGS, side="right")) - 1
        edges.append(min(num_terms, max(low + 1, high)))
    return edges
