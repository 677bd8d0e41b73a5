"""Estimates with intervals: the one statistics module.

Which to use: ``wilson`` for a share of right answers; ``bootstrap`` for the mean of any other per-question number;
``paired_bootstrap`` for the difference of two systems on the same questions, ``mcnemar`` for right and wrong answers
there; ``mean_t`` for a few runs (seeds); ``pass_at_k`` and ``majority_at_k`` for several samples of a question.
All intervals are two-sided, 95 %. Non-finite input is an error, never a silent NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

_UPPER = 0.975
"""The upper end of a two-sided 95 % interval, as a quantile."""
_RESAMPLES_AT_ONCE = 2**22
"""Random indices drawn in one go (32 MB), so that memory does not grow with the data."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, the interval around it and the number of observations."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, n: int) -> Interval:
    """Share ``successes / n`` with the score interval of Wilson (1927), without continuity correction.

    Where several samples of a question were drawn, each counts as the mean over its samples, which varies less than one
    sample: the interval is then wide enough, and not empty where all means are alike.

    Raises ValueError unless ``0 <= successes <= n`` and ``n >= 1``.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(
            f"{successes} successes of {n}: there must be at least one trial, and no more successes than n"
        )
    z = NormalDist().inv_cdf(_UPPER)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    # At the ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n)


def bootstrap(values: Sequence[float] | npt.NDArray[np.floating], *, seed: int, resamples: int = 10_000) -> Interval:
    """Mean with the percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13). Same seed, same interval."""
    data = _finite(values)
    means = _resampled_means(data, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [1 - _UPPER, _UPPER])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_bootstrap(
    before: Sequence[float] | npt.NDArray[np.floating],
    after: Sequence[float] | npt.NDArray[np.floating],
    *,
    seed: int,
    resamples: int = 10_000,
) -> Interval:
    """Mean of ``after - before`` per question, questions resampled as pairs. Raises ValueError if lengths differ."""
    if len(before) != len(after):
        raise ValueError(f"paired data of different lengths: {len(before)} and {len(after)}")
    return bootstrap(_finite(after) - _finite(before), seed=seed, resamples=resamples)


def mean_t(values: Sequence[float] | npt.NDArray[np.floating]) -> Interval:
    """Mean with Student's t interval, for a handful of runs. Raises ValueError for fewer than two."""
    from scipy.stats import t  # slow to import, and needed only here

    data = _finite(values)
    if len(data) < 2:
        raise ValueError("an interval over runs needs at least two of them")
    half = t.ppf(_UPPER, len(data) - 1) * data.std(ddof=1) / math.sqrt(len(data))
    return Interval(float(data.mean()), float(data.mean() - half), float(data.mean() + half), len(data))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int, float]:
    """Questions lost, questions won, and the two-sided exact p-value that a fair coin would part them so or worse.

    Exact binomial test on the questions that changed (McNemar 1947; Fagerland and others 2013); 1 if none did.
    Raises ValueError if lengths differ.
    """
    lost = sum(was and not now for was, now in zip(before, after, strict=True))
    won = sum(now and not was for was, now in zip(before, after, strict=True))
    changed = lost + won
    tail = sum(math.comb(changed, few) for few in range(min(lost, won) + 1))
    # Whole numbers until the end: 2 ** changed is beyond floating point from 1,024 changes on.
    return lost, won, min(1.0, 2 * tail / 2**changed)


def pass_at_k(right: int, n: int, k: int) -> float:
    """Chance that at least one of ``k`` draws without replacement is right, ``right`` of ``n`` samples being so.

    The unbiased estimator of Chen and others (arXiv 2107.03374). Raises ValueError unless ``1 <= k <= n``.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {right} right among {n} samples: k is at least 1 and at most their number")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[str | None], scores: Sequence[float], k: int) -> float:
    """Score of the answer that most of the first ``k`` samples gave; of equals, the one that was given first.

    ``answers`` are normalised; a sample without one has no vote, and 0 is the score if none has an answer.
    Raises ValueError unless there are ``k`` samples.
    """
    if not 1 <= k <= len(answers) or len(answers) != len(scores):
        raise ValueError(f"maj@{k} of {len(answers)} answers with {len(scores)} scores")
    votes = Counter(answer for answer in answers[:k] if answer is not None)
    return scores[answers.index(votes.most_common(1)[0][0])] if votes else 0.0


def _resampled_means(
    data: npt.NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> npt.NDArray[np.float64]:
    rows = max(1, _RESAMPLES_AT_ONCE // len(data))
    parts = [
        data[generator.integers(len(data), size=(min(rows, resamples - done), len(data)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _finite(values: Sequence[float] | npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError("statistics need a non-empty row of finite numbers")
    return data
