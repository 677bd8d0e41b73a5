"""BM25 against a plain float64 reading of the formula, and against the library whose layout it shares."""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.retrieval.backends.bm25 import Bm25
from search_agent.retrieval.index.analysis import STOP_WORDS, Analyzer
from search_agent.retrieval.index.postings import K1, B, build_postings

WORDS = [f"w{i}" for i in range(40)]


def reference(texts: list[str], query: str) -> list[tuple[int, float]]:
    """Lucene's BM25 in plain Python: all matching passages, best first, ties in corpus order."""
    analyzer = Analyzer()
    counts = [Counter(analyzer.terms(text)) for text in texts]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(lengths) or 1.0
    totals = [0.0] * len(texts)
    for term in analyzer.terms(query):
        df = sum(term in count for count in counts)
        idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        for doc, count in enumerate(counts):
            tf = count[term]
            totals[doc] += idf * tf / (tf + K1 * (1 - B + B * lengths[doc] / mean)) if tf else 0.0
    return sorted(
        ((doc, total) for doc, total in enumerate(totals) if total > 0), key=lambda hit: (-round(hit[1], 9), hit[0])
    )


def random_text(rng: random.Random, low: int, high: int) -> str:
    weights = [1 / (1 + rank) for rank in range(len(WORDS))]
    return " ".join(rng.choices(WORDS, weights, k=rng.randint(low, high)))


def test_equals_a_float64_reference_on_1000_random_queries() -> None:
    rng = random.Random(5)
    texts = [random_text(rng, 1, 12) for _ in range(60)]
    engine = Bm25(build_postings(texts))
    for _ in range(1000):
        query = random_text(rng, 1, 6)
        expected, got = reference(texts, query)[:10], engine.search([query], 10)[0]
        assert [hit.doc for hit in got] == [doc for doc, _ in expected]
        np.testing.assert_allclose([hit.score for hit in got], [score for _, score in expected], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=8), st.text("ab c", max_size=8), st.integers(1, 12))
def test_equals_the_reference_on_odd_corpora(texts: list[str], query: str, k: int) -> None:
    got = Bm25(build_postings(texts)).search([query], k)[0]
    assert [hit.doc for hit in got] == [doc for doc, _ in reference(texts, query)[:k]]


def test_a_passage_without_a_match_is_not_invented() -> None:
    engine = Bm25(build_postings(["alpha beta", "gamma", ""]))
    assert engine.search(["", "the of", "delta", "日本", "alpha"], 5)[:4] == [[], [], [], []]
    assert [hit.doc for hit in engine.search(["alpha"], 5)[0]] == [0]


def test_equal_scores_stand_in_corpus_order() -> None:
    engine = Bm25(build_postings(["x1 y1"] * 50))
    assert [hit.doc for hit in engine.search(["x1"], 7)[0]] == list(range(7))


def test_a_million_novel_words_leave_memory_bounded() -> None:
    engine = Bm25(build_postings(["alpha beta", "gamma"]))

    def ask(first: int, last: int) -> int:
        for start in range(first, last, 10_000):
            assert engine.search([" ".join(f"novel{number}word" for number in range(start, start + 10_000))], 3) == [[]]
        return int(psutil.Process().memory_info().rss)

    before, after = ask(0, 50_000), ask(50_000, 1_050_000)
    assert after - before < 20 * 2**20  # remembering them would take 180 bytes each: the stemmer forgets


def test_stop_words_are_those_of_bm25s() -> None:
    stopwords = pytest.importorskip("bm25s.stopwords")
    assert frozenset(stopwords.STOPWORDS_EN) == STOP_WORDS


def test_equals_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    stemmer = pytest.importorskip("Stemmer").Stemmer("english")
    rng = random.Random(7)
    texts = [f"{random_text(rng, 3, 30)} running the runner's Élan" for _ in range(80)]
    theirs = bm25s.BM25(k1=K1, b=B)
    theirs.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    ours = Bm25(build_postings(texts))
    for query in [random_text(rng, 1, 5) for _ in range(50)] + ["Runners run with élan"]:
        tokens = bm25s.tokenize(query, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
        expected = np.sort(theirs.get_scores(tokens[0]))[::-1][:10]
        got = [hit.score for hit in ours.search([query], 10)[0]]
        np.testing.assert_allclose(got, expected[: len(got)], rtol=1e-5)


def normalise(text: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]", "", text.lower())).split())


@pytest.mark.parametrize(
    ("name", "top3", "top10"),
    [("hotpotqa", 0.612, 0.782), ("2wikimultihopqa", 0.408, 0.580), ("bamboogle", 0.216, 0.360)],
)
def test_hits_on_real_passages_reach_the_published_figures(name: str, top3: float, top10: float) -> None:
    data = os.environ.get("SLEUTH_TEST_DATA")
    if not data:
        pytest.skip("SLEUTH_TEST_DATA is not set: no real passages here")
    folder = Path(data) / "wiki_mini"
    contents = [json.loads(line)["contents"] for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")]
    normalised = [normalise(text) for text in contents]
    found = Bm25(build_postings(contents)).search([row["question"] for row in rows], 10)

    def share(k: int) -> float:
        return sum(
            any(normalise(answer) in normalised[hit.doc] for hit in hits[:k] for answer in row["golden_answers"])
            for row, hits in zip(rows, found, strict=True)
        ) / len(rows)

    assert share(3) >= top3
    assert share(10) >= top10
