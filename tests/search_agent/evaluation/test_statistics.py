"""Intervals against published and closed-form values."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.evaluation.statistics import (
    bootstrap,
    majority_at_k,
    mcnemar,
    mean_t,
    paired_bootstrap,
    pass_at_k,
    wilson,
)


# Newcombe (1998), Statistics in Medicine 17, table I: method 3, the score interval, 95 %.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_its_estimate_and_is_symmetric(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    one, other = wilson(k, n), wilson(n - k, n)
    assert 0 <= one.low <= one.estimate <= one.high <= 1
    assert (one.low, one.high) == (pytest.approx(1 - other.high), pytest.approx(1 - other.low))


def test_mean_t_gives_the_textbook_interval() -> None:
    # 1..5: mean 3, standard error sqrt(2.5 / 5), t(0.975, 4) = 2.776445
    interval = mean_t([1, 2, 3, 4, 5])
    assert interval.high - 3 == pytest.approx(2.776445 * math.sqrt(0.5), rel=1e-6)
    assert 3 - interval.low == pytest.approx(interval.high - 3)


def test_bootstrap_is_seeded_and_has_the_normal_width_on_large_samples() -> None:
    data = np.random.default_rng(0).normal(2.0, 3.0, size=2000)
    interval = bootstrap(data, seed=1, resamples=4000)
    assert interval == bootstrap(data, seed=1, resamples=4000)
    assert interval != bootstrap(data, seed=2, resamples=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * data.std() / math.sqrt(2000), rel=0.06)


def test_bootstrap_of_a_constant_has_no_width() -> None:
    assert str(bootstrap([0.5] * 7, seed=0)) == "0.500 [0.500, 0.500]"


def test_pairing_removes_what_the_questions_share() -> None:
    difficulty = np.random.default_rng(0).normal(0.0, 10.0, size=300)
    gain = np.random.default_rng(1).normal(1.0, 0.1, size=300)
    paired = paired_bootstrap(difficulty, difficulty + gain, seed=0, resamples=2000)
    assert paired.low > 0.9
    assert paired.high < 1.1


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_bad_data_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap(values, seed=0)


def test_impossible_counts_and_unequal_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="different lengths"):
        paired_bootstrap([1.0], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="at least two"):
        mean_t([1.0])


def pairs(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * (both + lost) + [False] * (won + neither)
    after = [True] * both + [False] * lost + [True] * won + [False] * neither
    return before, after


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (1, 7, 2 * (1 + 8) / 2**8),
        (0, 5, 2 / 32),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int, p: float) -> None:
    assert mcnemar(*pairs(20, lost, won, 20)) == (lost, won, pytest.approx(p, rel=1e-12))


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_agrees_with_scipy_and_does_not_care_for_direction(lost: int, won: int) -> None:
    from scipy.stats import binomtest

    p = mcnemar(*pairs(3, lost, won, 2))[2]
    assert p == pytest.approx(mcnemar(*pairs(3, won, lost, 2))[2])
    if lost + won:
        assert p == pytest.approx(binomtest(lost, lost + won).pvalue, rel=1e-9)


def test_mcnemar_of_thousands_of_changes_is_finite() -> None:
    assert 0 < mcnemar(*pairs(0, 2000, 2100, 0))[2] < 1


@pytest.mark.parametrize(
    ("right", "n", "k", "expected"), [(0, 5, 3, 0.0), (1, 5, 1, 0.2), (1, 5, 5, 1.0), (2, 4, 2, 5 / 6), (5, 5, 2, 1.0)]
)
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: int, n: int, k: int, expected: float) -> None:
    assert pass_at_k(right, n, k) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_counts_every_subset(samples: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    subsets = list(combinations(samples, k))
    assert pass_at_k(sum(samples), len(samples), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("answers", "k", "expected"),
    [
        (["a", "b", "b"], 3, 0.0),
        (["a", "b", "b"], 1, 1.0),
        (["a", "b", "b"], 2, 1.0),  # of equals, the first
        ([None, None, "a"], 2, 0.0),
        ([None, None, "a"], 3, 1.0),
        ([None, "b", None], 3, 0.0),
    ],
)
def test_the_majority_answers(answers: list[str | None], k: int, expected: float) -> None:
    assert majority_at_k(answers, [float(answer == "a") for answer in answers], k) == expected


@pytest.mark.parametrize("k", [0, 3])
def test_more_draws_than_samples_are_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=f"@{k}"):
        pass_at_k(1, 2, k)
    with pytest.raises(ValueError, match=f"@{k}"):
        majority_at_k(["a", "b"], [1, 0], k)
