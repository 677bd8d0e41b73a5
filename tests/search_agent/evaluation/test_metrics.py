"""Scores of answers and rankings against published and closed-form values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.evaluation.metrics import (
    first_answer_rank,
    hit,
    ndcg,
    recall,
    reciprocal_rank,
    score_answer,
)
from search_agent.rewards.text import cover_match, exact_match, f1


# What FlashRAG's evaluator gives (but for golds that normalise to nothing): em, acc, f1, precision, recall.
@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("Barack Obama", ["Obama", "Barack Hussein Obama II"], (0, 1, 2 / 3, 1, 1)),  # maxima from different golds
        ("New York City, NY", ["New York"], (0, 1, 2 / 3, 0.5, 1)),
        ("2,000", ["2000"], (1, 1, 1, 1, 1)),
        ("U.S.A.", ["USA"], (1, 1, 1, 1, 1)),
        ("Yes, it is", ["yes"], (0, 1, 0, 0, 0)),
        ("yes", ["yes", "no"], (1, 1, 1, 1, 1)),
        ("11", ["1"], (0, 1, 0, 0, 0)),
        ("\u2018Paris\u2019", ["Paris"], (0, 1, 0, 0, 0)),
        ("well-known", ["well known"], (0, 0, 0, 0, 0)),
        ("café", ["cafe"], (0, 0, 0, 0, 0)),
        ("CAFÉ", ["café"], (1, 1, 1, 1, 1)),
        ("", ["Paris"], (0, 0, 0, 0, 0)),
        ("", ["A"], (0, 0, 0, 0, 0)),  # published: 1, 1, 0, 0, 0: an article alone normalises to nothing
        ("anything", ["A"], (0, 0, 0, 0, 0)),  # published: 0, 1, 0, 0, 0
        ("a vitamin", ["vitamin A"], (1, 1, 1, 1, 1)),
        ("I", ["i"], (1, 1, 1, 1, 1)),
        ("article I", ["I"], (0, 1, 2 / 3, 0.5, 1)),
        ("no", ["no one"], (0, 0, 0, 0, 0)),  # the guard holds whichever side is yes, no or noanswer
        ("noanswer", ["noanswer yes"], (0, 0, 0, 0, 0)),
        ("a", ["A"], (1, 1, 1, 1, 1)),
        ("B", ["A"], (0, 0, 0, 0, 0)),
        ("cafe\u0301", ["café"], (0, 0, 0, 0, 0)),  # as published: no Unicode form is brought to another
        ("東京", ["東京"], (1, 1, 1, 1, 1)),
        ("STRASSE", ["straße"], (0, 0, 0, 0, 0)),  # lower case, not folded
        ("the the cat cat", ["cat"], (0, 1, 2 / 3, 0.5, 1)),  # words count as often as they stand there
    ],
)
def test_answers_score_as_published(prediction: str, golds: list[str], expected: tuple[float, ...]) -> None:
    scores = score_answer(prediction, golds)
    assert (scores.em, scores.acc, scores.f1, scores.precision, scores.recall) == pytest.approx(expected)


def test_an_answer_without_golds_is_an_error() -> None:
    with pytest.raises(ValueError, match="no accepted answer"):
        score_answer("Paris", [])


words = st.text(alphabet="abc theno,.-é", max_size=15)


@given(words, st.lists(words, min_size=1, max_size=3))
def test_rewards_and_evaluation_score_an_answer_alike(prediction: str, golds: list[str]) -> None:
    scores = score_answer(prediction, golds)
    assert scores.em == exact_match(prediction, golds)
    assert scores.acc == cover_match(prediction, golds)
    assert scores.f1 == f1(prediction, golds)
    assert scores.f1 <= min(scores.precision, 1) + min(scores.recall, 1)


@pytest.mark.parametrize(
    ("ranking", "grades", "expected"),
    [
        (["a", "b"], {"b": 1, "a": 0}, 0.5),
        (["a", "a", "b"], {"b": 1}, 0.5),
        (["x"], {"b": 1}, 0.0),
        (["b", "a"], {"a": 2, "b": 1}, 1.0),
    ],
)
def test_reciprocal_rank_is_of_the_first_relevant_passage(
    ranking: list[str], grades: dict[str, float], expected: float
) -> None:
    assert reciprocal_rank(ranking, grades) == expected


RANKING = ["a", "b", "c", "d"]
LOG3 = math.log2(3)


@pytest.mark.parametrize(
    ("ranking", "grades", "k", "expected"),
    [
        (RANKING, {"a": 1}, 10, 1.0),
        (RANKING, {"b": 1}, 10, 1 / LOG3),
        (RANKING, {"b": 1}, 1, 0.0),
        (RANKING, {"c": 1, "a": 2}, 10, (2 + 1 / 2) / (2 + 1 / LOG3)),
        # The ideal order is by grade, whatever the file's order is: never above 1.
        (["a", "b"], {"b": 1, "a": 3}, 10, 1.0),
        (["b", "a"], {"a": 3, "b": 1}, 10, (1 + 3 / LOG3) / (3 + 1 / LOG3)),
        # What is relevant and was not found counts in the ideal, up to k.
        (["a"], {"a": 1, "x": 1, "y": 1}, 2, 1 / (1 + 1 / LOG3)),
        (["a", "a", "b"], {"b": 1}, 10, 1 / LOG3),  # listed twice, counted once
        (RANKING, {"a": -1, "b": 1}, 10, 1 / LOG3),  # a grade below 0 takes nothing away
        ([], {"a": 1}, 10, 0.0),
    ],
)
def test_ndcg_is_the_closed_form(ranking: list[str], grades: dict[str, float], k: int, expected: float) -> None:
    assert ndcg(ranking, grades, k) == pytest.approx(expected, abs=1e-12)


def test_recall_and_hit() -> None:
    grades = {"c": 1, "d": 2, "x": 1, "a": 0}
    assert recall(RANKING, grades, 3) == pytest.approx(1 / 3)
    assert recall(RANKING, grades, 4) == pytest.approx(2 / 3)
    assert (hit(RANKING, grades, 2), hit(RANKING, grades, 3)) == (0, 1)
    assert recall(["d", "d", "c"], grades, 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("measure", [ndcg, recall, hit])
def test_a_ranking_without_relevant_passages_has_no_score(measure: object) -> None:
    with pytest.raises(ValueError, match="no passage is judged relevant"):
        measure(RANKING, {"a": 0}, 10)  # type: ignore[operator]


@pytest.mark.parametrize("measure", [ndcg, recall, hit])
def test_a_cut_below_one_is_an_error(measure: object) -> None:
    with pytest.raises(ValueError, match="k is 0"):
        measure(RANKING, {"a": 1}, 0)  # type: ignore[operator]


identifiers = st.sampled_from("abcdefgh")


@given(
    st.lists(identifiers, max_size=12),
    st.dictionaries(identifiers, st.integers(-1, 3), min_size=1).filter(lambda grades: max(grades.values()) > 0),
    st.integers(1, 10),
)
def test_rankings_score_within_bounds_and_the_ideal_one_scores_one(
    ranking: list[str], grades: dict[str, float], k: int
) -> None:
    ideal = sorted(grades, key=lambda identifier: -grades[identifier])
    assert 0 <= ndcg(ranking, grades, k) <= 1 + 1e-12
    assert ndcg(ideal, grades, k) == pytest.approx(1)
    assert hit(ranking, grades, k) == (recall(ranking, grades, k) > 0)


@pytest.mark.parametrize(
    ("passages", "golds", "rank"),
    [
        (["Red sky", "The capital is Paris."], ["paris"], 2),
        (["Parisian nights"], ["Paris"], None),  # whole words
        (["the U.S. army"], ["U.S."], 1),
        (["cafe\u0301 noir"], ["Café"], 1),  # composed or not is the same
        (["a cafe"], ["café"], None),
        (["North\nAmerica"], ["north america"], 1),
        (["North, America"], ["north america"], None),
        (["anything"], ["", " "], None),
        (["vitamin a"], ["A"], 1),  # articles are words here
        (["東京 タワー"], ["東京"], 1),
        ([], ["x"], None),
    ],
)
def test_the_first_passage_with_an_answer_is_found_as_in_dpr(
    passages: list[str], golds: list[str], rank: int | None
) -> None:
    assert first_answer_rank(passages, golds) == rank
