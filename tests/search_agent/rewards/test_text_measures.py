"""Answer measures against the golden values that the published evaluation code gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.rewards.text import cover_match, exact_match, f1, normalise, word_match


@pytest.mark.parametrize(
    ("prediction", "golds", "em", "cover", "token_f1"),
    [
        ("Barack Obama", ["Obama", "Barack Hussein Obama II"], 0, 1, 2 / 3),
        ("New York City, NY", ["New York"], 0, 1, 2 / 3),
        ("2,000", ["2000"], 1, 1, 1),
        ("U.S.A.", ["USA"], 1, 1, 1),
        ("Yes, it is", ["yes"], 0, 1, 0),
        ("11", ["1"], 0, 1, 0),
        ("\u2018Paris\u2019", ["Paris"], 0, 1, 0),
        ("well-known", ["well known"], 0, 0, 0),
        ("café", ["cafe"], 0, 0, 0),
        ("", ["Paris"], 0, 0, 0),
        ("", ["A"], 0, 0, 0),
        ("anything", ["A"], 0, 0, 0),
        ("a.", ["A"], 1, 1, 1),
        ("B", ["A"], 0, 0, 0),
        ("The The", ["The The"], 1, 1, 1),
        ("the", ["The The"], 0, 0, 2 / 3),
        ("+", ["+"], 1, 1, 1),
        ("-", ["+"], 0, 0, 0),
        ("no", ["no"], 1, 1, 1),
        ("the  Seine River", ["Seine"], 0, 1, 2 / 3),
        ("Paris", [], 0, 0, 0),
    ],
)
def test_golden_values(prediction: str, golds: list[str], em: float, cover: float, token_f1: float) -> None:
    assert exact_match(prediction, golds) == em
    assert cover_match(prediction, golds) == cover
    assert f1(prediction, golds) == pytest.approx(token_f1)


def test_normalisation() -> None:
    assert normalise("  The Cat's  A-B, an\tother ") == "cats ab other"


@pytest.mark.parametrize(
    ("text", "gold", "hit"),
    [
        ("it is well known", "no", 0),
        ("no , it is not", "no", 0),
        ("chapter 11", "1", 0),
        ("chapter 1", "1", 1),
        ("written by Mara Ellwood.", "mara ellwood", 1),
        ("written by maraellwood", "mara", 0),
        ("anything", "the", 0),
    ],
)
def test_word_match_is_not_fooled_by_characters(text: str, gold: str, hit: float) -> None:
    assert word_match(text, [gold]) == hit


answers = st.text(alphabet="abc the,.-", max_size=15)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=3))
def test_saying_nothing_earns_nothing(golds: list[str]) -> None:
    for nothing in ("", " \n", "\u200b"):
        golds = [gold for gold in golds if gold.strip() != nothing.strip()] or ["x"]
        assert exact_match(nothing, golds) == cover_match(nothing, golds) == f1(nothing, golds) == 0


@given(answers, st.lists(answers, min_size=1, max_size=3))
def test_an_equal_answer_is_a_full_match_and_measures_are_bounded(prediction: str, golds: list[str]) -> None:
    assert 0 <= f1(prediction, golds) <= 1
    assert cover_match(prediction, golds) >= exact_match(prediction, golds)
    assert cover_match(prediction, golds) >= word_match(prediction, golds)
    assert exact_match(prediction, [*golds, prediction]) == 1
    assert f1(prediction, [*golds, prediction]) == 1
    assert f1(prediction, golds) <= f1(prediction, [*golds, prediction])
