"""Where to look in a long list of passages: for each block of the corpus, the position at which it begins in the list,
and 64 marks, one for each 64th of the block, which tell for most passages that they are not in the list.

The blocks of a list are as long as makes them hold 8 to 16 of its passages on average, so a table takes at most one and
a half bytes a posting. A table is made when its term is first asked for: an index opens at once, whatever its size.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from search_agent.retrieval.index.postings import Postings

MIN_POSTINGS = 256
"""A shorter list is searched without a table."""
NO_TABLE = -1


class Index(NamedTuple):
    """An inverted index (see ``Postings``) and the tables of its long lists, as compiled code takes them."""

    starts: npt.NDArray[np.int64]
    docs: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    maxima: npt.NDArray[np.float32]
    shifts: npt.NDArray[np.int8]
    """``[terms]``: the binary logarithm of its block length, or ``NO_TABLE``."""
    places: npt.NDArray[np.int64]
    """``[terms]``: where its blocks begin in the two arrays below."""
    skips: npt.NDArray[np.int32]
    """``[blocks]``: the position in the list at which the block begins."""
    marks: npt.NDArray[np.uint64]
    """``[blocks]``"""


class Skips:
    """The tables of one index; any number of threads."""

    def __init__(self, postings: Postings) -> None:
        lengths = np.diff(postings.starts)
        blocks = np.log2(16 * max(1, postings.num_docs) / np.maximum(1, lengths))
        shifts = np.where(lengths >= MIN_POSTINGS, blocks, NO_TABLE).astype(np.int8)
        sizes = np.where(shifts >= 0, (postings.num_docs >> np.maximum(0, shifts).astype(np.int64)) + 2, 0)
        places = np.cumsum(sizes) - sizes
        total = int(sizes.sum())
        lists = (postings.starts, postings.docs, postings.scores, postings.maxima)
        self._index = Index(*lists, shifts, places, np.zeros(total, np.int32), np.zeros(total, np.uint64))
        self._missing = shifts >= 0
        self._lock = threading.Lock()
        self.of(np.flatnonzero(self._missing)[:1])  # compiles before the first query comes

    def of(self, terms: npt.NDArray[np.int64]) -> Index:
        """The index, the tables of ``terms`` being filled."""
        if self._missing[terms].any():
            with self._lock:
                for term in terms[self._missing[terms]]:
                    _fill(self._index, term)
                    self._missing[term] = False
        return self._index


@numba.njit(cache=True, nogil=True)
def _fill(index, term):  # type: ignore[no-untyped-def]
    """Write the table of one term."""
    start, end, docs, places = index.starts[term], index.starts[term + 1], index.docs, index.places
    at, low, place, shift = start, np.int64(0), places[term], index.shifts[term]
    size = (places[term + 1] if term + 1 < len(places) else len(index.skips)) - place
    for block in range(place, place + size):
        index.skips[block] = at - start
        high, bits = low + (np.int64(1) << shift), np.uint64(0)
        while at < end and docs[at] < high:
            bits |= mark_of(np.int64(docs[at]), shift)
            at += 1
        index.marks[block] = bits
        low = high


@numba.njit(cache=True, nogil=True, inline="always")
def mark_of(doc, shift):  # type: ignore[no-untyped-def]
    """The mark of a passage within its block of ``2 ** shift`` passages."""
    within = doc & ((np.int64(1) << shift) - 1)
    return np.uint64(1) << np.uint64((within << 6) >> shift)


@numba.njit(cache=True, nogil=True)
def look_up(index, term, doc):  # type: ignore[no-untyped-def]
    """The position of a passage in the list of a term, -1 if it is not there."""
    shift, start = index.shifts[term], index.starts[term]
    block = index.places[term] + (doc >> shift)
    if index.marks[block] & mark_of(doc, shift) == 0:
        return -1
    for at in range(start + index.skips[block], start + index.skips[block + 1]):
        if index.docs[at] >= doc:
            return at if index.docs[at] == doc else -1
    return -1
