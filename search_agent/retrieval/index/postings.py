"""An inverted index: which passage holds which term, and what the term is worth there.

The layout is that of ``bm25s`` (its matrix of scores by column): the postings of term t are ``docs[starts[t] :
starts[t + 1]]``, ascending, with their finished BM25 scores beside them in ``scores``. Scores are Lucene's BM25,

    ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length)),

computed in float64 and stored in float32; the score of a query is their float64 sum, which for float32 addends of
ordinary size is exact, so that neither the order of terms nor the layout of shards changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_agent.retrieval.index.analysis import Analyzer

K1 = 1.2
B = 0.75

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]
"""Passage numbers and their scores, ``[queries, k]``, and how many of each row count, ``[queries]``."""


@dataclass(frozen=True, slots=True)
class Postings:
    """The finished index."""

    vocabulary: dict[str, int]
    """Term to its number."""
    starts: npt.NDArray[np.int64]
    """``[terms + 1]``."""
    docs: Ints
    """``[postings]``, ascending within a term."""
    scores: Floats
    """``[postings]``, above 0."""
    maxima: Floats
    """``[terms]``: the highest score of each term anywhere."""
    num_docs: int
    k1: float = K1
    b: float = B


@dataclass(frozen=True, slots=True)
class Batch:
    """Queries as term numbers: query i has ``terms[offsets[i] : offsets[i + 1]]``, repeats included."""

    terms: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Range:
    """Consecutive passages: those that one shard searches."""

    start: int
    stop: int

    @classmethod
    def of_shard(cls, shard: int, shards: int, num_docs: int) -> Range:
        """Shard number ``shard`` of ``shards`` ranges that differ by at most one passage."""
        return cls(num_docs * shard // shards, num_docs * (shard + 1) // shards)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Counted terms of consecutive passages, sorted by term and then by passage."""

    terms: Ints
    docs: Ints
    """Numbers within the whole corpus."""
    counts: Ints
    """How often the term stands in the passage."""
    lengths: Ints
    """``[passages of the chunk]``: terms, repeats included."""


class Lexicon:
    """Numbers terms in the order in which they first appear."""

    def __init__(self, terms: Iterable[str] = ()) -> None:
        self.numbers: dict[str, int] = {term: number for number, term in enumerate(terms)}
        self._analyzer = Analyzer()
        self._of_word = _Memo(self._number)

    def number_of_words(self, text: str) -> list[int]:
        """The term number of each word of a text, -1 for stop words."""
        of_word = self._of_word
        return [of_word[word] for word in self._analyzer.words(text)]

    def _number(self, word: str) -> int:
        term = self._analyzer.term(word)
        return -1 if term is None else self.numbers.setdefault(term, len(self.numbers))


class _Memo(dict[str, int]):
    """Remembers the term of each word, up to a bound: corpora hold millions of words that appear once."""

    MAX_WORDS = 1_000_000

    def __init__(self, compute: Callable[[str], int]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, word: str) -> int:
        if len(self) >= self.MAX_WORDS:
            self.clear()
        number = self._compute(word)
        self[word] = number
        return number


def count_terms(texts: Iterable[str], lexicon: Lexicon, first_doc: int = 0) -> Chunk:
    """Count the terms of consecutive passages, of which the first has the number ``first_doc``."""
    numbers = [np.asarray(lexicon.number_of_words(text), np.int32) for text in texts]
    kept = [row[row >= 0] for row in numbers]
    lengths = np.asarray([len(row) for row in kept], np.int32)
    flat = np.concatenate(kept) if kept else np.zeros(0, np.int32)
    owner = np.repeat(np.arange(len(kept), dtype=np.int64), lengths)
    keys, counts = np.unique(flat.astype(np.int64) * max(1, len(kept)) + owner, return_counts=True)
    terms, docs = np.divmod(keys, max(1, len(kept)))
    return Chunk(terms.astype(np.int32), (docs + first_doc).astype(np.int32), counts.astype(np.int32), lengths)


def inverse_document_frequency(doc_counts: npt.NDArray[np.int64], num_docs: int) -> npt.NDArray[np.float64]:
    """Lucene's idf of terms that stand in so many of ``num_docs`` passages; ``[terms]`` float64, above 0."""
    return np.log1p((num_docs - doc_counts + 0.5) / (doc_counts + 0.5))


def length_norms(lengths: npt.NDArray[np.int32], mean_length: float) -> npt.NDArray[np.float64]:
    """What BM25 adds to tf in the denominator, for passages of these lengths; ``[passages]`` float64."""
    return K1 * (1 - B + B * lengths.astype(np.float64) / mean_length)


def score_counts(
    counts: npt.NDArray[np.int32], idf: npt.NDArray[np.float64], norms: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """BM25 of each posting from its count, its term's idf and its passage's norm; all of one length."""
    tf = counts.astype(np.float64)
    return (idf * tf / (tf + norms)).astype(np.float32)


def build_postings(texts: Iterable[str]) -> Postings:
    """The index of passages that fit in memory, 20 bytes a posting while it is built."""
    lexicon = Lexicon()
    chunk = count_terms(texts, lexicon)
    num_docs, num_terms = len(chunk.lengths), len(lexicon.numbers)
    doc_counts = np.bincount(chunk.terms, minlength=num_terms)
    mean_length = float(chunk.lengths.sum()) / max(1, num_docs)
    norms = length_norms(chunk.lengths, mean_length or 1.0)
    idf = inverse_document_frequency(doc_counts, num_docs)
    starts = np.zeros(num_terms + 1, np.int64)
    np.cumsum(doc_counts, out=starts[1:])
    scores = score_counts(chunk.counts, idf[chunk.terms], norms[chunk.docs])
    arrays = (starts, chunk.docs, scores, term_maxima(scores, starts))
    for array in arrays:
        array.setflags(write=False)  # as those of a mapped index are: compiled code exists for one kind only
    return Postings(lexicon.numbers, *arrays, num_docs)


def term_maxima(scores: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    """The highest score of each term, ``[terms]`` float32; 0 for a term without postings."""
    maxima = np.zeros(len(starts) - 1, np.float32)
    held = np.flatnonzero(starts[1:] > starts[:-1])
    if len(held):
        maxima[held] = np.maximum.reduceat(scores, starts[held])
    return maxima
