"""Exact top-k over an inverted index without reading all of it: MaxScore, in windows, compiled by numba.

Terms are ordered by the most they can add to any passage. Once k passages have been found, the weakest terms whose
bounds together stay below the k-th best score cannot lift a passage on their own: their long lists are only looked up
for passages that stronger terms have found (Turtle and Flood 1995). Passages go by in windows, so that running sums
stay in the processor's cache; a lookup goes through a table of the list's blocks (``skips``). Sums are
float64 over float32 scores, equal in any order, so the answer is bit for bit that of adding everything up. Importing
this module imports numba (about a second); compiled code is kept on disk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from search_agent.retrieval.backends.skips import Skips, look_up
from search_agent.retrieval.index.postings import Batch, Found, Postings, Range

WINDOW = 1 << 12


class Query(NamedTuple):
    """The distinct terms of one query, ascending by bound."""

    terms: Any
    weights: Any
    """How often each stands in the query, float64."""
    bounds: Any
    """The most that each can add to a passage, float64."""


class Window(NamedTuple):
    """What adding up needs, made once for all queries."""

    sums: Any
    """``[WINDOW]`` float64, zeros between two windows."""
    touched: Any
    """``[WINDOW]`` int32: places whose sum is above 0."""


class MaxScoreKernel:
    """See ``bm25.Kernel``. Releases the interpreter lock; any number of threads."""

    name = "maxscore"

    def __init__(self, postings: Postings) -> None:
        self._skips = Skips(postings)

    def __call__(self, batch: Batch, docs: Range, k: int) -> Found:
        """Search."""
        k = min(k, docs.stop - docs.start)
        num_queries = len(batch.offsets) - 1
        found = np.zeros((num_queries, k), np.int64)
        totals = np.zeros((num_queries, k), np.float64)
        counts = np.zeros(num_queries, np.int64)
        index = self._skips.of(batch.terms)
        _search(index, batch.terms, batch.offsets, (docs.start, docs.stop), found, totals, counts)
        return found, totals, counts


@numba.njit(cache=True, nogil=True)
def _search(index, terms, offsets, span, found, totals, counts):  # type: ignore[no-untyped-def]
    window = Window(np.zeros(WINDOW, np.float64), np.empty(WINDOW, np.int32))
    for query in range(len(offsets) - 1):
        own = np.unique(terms[offsets[query] : offsets[query + 1]])
        weights = np.zeros(len(own), np.float64)
        for term in terms[offsets[query] : offsets[query + 1]]:
            weights[np.searchsorted(own, term)] += 1.0
        bounds = weights * index.maxima[own]
        order = np.argsort(bounds)
        asked = Query(own[order], weights[order], bounds[order])
        counts[query] = _one(index, asked, span, window, found[query], totals[query])


@numba.njit(cache=True, nogil=True)
def _one(index, query, span, window, found, totals):  # type: ignore[no-untyped-def]
    """Fill found and totals for one query, and return how many."""
    terms, weights, (first, stop) = query.terms, query.weights, span
    docs, scores, sums = index.docs, index.scores, window.sums
    num_terms = len(terms)
    here = np.empty(num_terms, np.int64)
    ends = np.empty(num_terms, np.int64)
    reach = np.zeros(num_terms + 1, np.float64)  # reach[j]: the most that terms 0 .. j - 1 add together
    for j in range(num_terms):
        here[j] = _seek(docs, index.starts[terms[j]], index.starts[terms[j] + 1], first)
        ends[j] = _seek(docs, here[j], index.starts[terms[j] + 1], stop)
        reach[j + 1] = reach[j] + query.bounds[j]
    size, essential = 0, 0
    threshold = _promise(scores, here, ends, weights, query.bounds, len(totals))
    while True:
        while essential < num_terms and reach[essential + 1] < threshold:
            essential += 1
        low = stop
        for j in range(essential, num_terms):
            if here[j] < ends[j]:
                low = min(low, docs[here[j]])
        if low == stop:
            return size
        high = min(stop, low + WINDOW)
        num_touched = 0
        for j in range(essential, num_terms):
            at, weight = here[j], weights[j]
            while at < ends[j] and docs[at] < high:
                place, value = docs[at] - low, weight * scores[at]
                if value > 0.0:  # so that a sum of 0 is one that nothing has touched: no place is noted twice
                    if sums[place] == 0.0:
                        window.touched[num_touched] = place
                        num_touched += 1
                    sums[place] += value
                at += 1
            here[j] = at
        if num_touched:
            for j in range(essential):
                if index.shifts[terms[j]] < 0:
                    here[j] = _seek(docs, here[j], ends[j], low)
        for number in range(num_touched):
            place = window.touched[number]
            total = sums[place]
            sums[place] = 0.0
            for j in range(essential - 1, -1, -1):
                if total + reach[j + 1] < threshold:
                    break
                if index.shifts[terms[j]] >= 0:
                    at = look_up(index, terms[j], np.int64(low) + place)
                else:
                    at = _seek(docs, here[j], ends[j], low + place)
                    if at == ends[j] or docs[at] != low + place:
                        at = -1
                if at >= 0:
                    total += weights[j] * scores[at]
            if total >= threshold:
                size = _keep(found, totals, size, low + place, total)
                if size == len(totals):
                    threshold = totals[-1]


@numba.njit(cache=True, nogil=True)
def _promise(scores, here, ends, weights, bounds, k):  # type: ignore[no-untyped-def]
    """A total that k passages reach for sure: the k-th best score of one term, of the term where that is highest."""
    promise = 0.0
    for j in range(len(here) - 1, -1, -1):
        if bounds[j] <= promise:
            break
        place = ends[j] - here[j] - k
        if place >= 0:
            promise = max(promise, weights[j] * np.partition(scores[here[j] : ends[j]], place)[place])
    return promise


@numba.njit(cache=True, nogil=True)
def _seek(docs, at, end, doc):  # type: ignore[no-untyped-def]
    """The first position from ``at`` whose passage is not before ``doc``: steps that double, then halving."""
    if at >= end or docs[at] >= doc:
        return at
    step = 1
    while at + step < end and docs[at + step] < doc:
        at += step
        step *= 2
    low, high = at + 1, min(end, at + step)
    while low < high:
        middle = (low + high) // 2
        if docs[middle] < doc:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True)
def _keep(found, totals, size, doc, total):  # type: ignore[no-untyped-def]
    """Insert into the sorted best, higher totals and then earlier passages first; returns how many there are."""
    if size == len(totals):
        if total < totals[-1] or (total == totals[-1] and doc > found[-1]):
            return size
        size -= 1
    at = size
    while at > 0 and (totals[at - 1] < total or (totals[at - 1] == total and found[at - 1] > doc)):
        totals[at] = totals[at - 1]
        found[at] = found[at - 1]
        at -= 1
    totals[at] = total
    found[at] = doc
    return size + 1
