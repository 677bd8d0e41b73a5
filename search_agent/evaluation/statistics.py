"""Estimates with intervals: the one statistics module.

Which to use: ``wilson`` for a share of right answers; ``bootstrap`` for the mean of any other per-question number;
``paired_bootstrap`` for the difference of two systems on the same questions; ``mean_t`` for a few runs (seeds).
All intervals are two-sided, 95 % by default. Non-finite input is an error, never a silent NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

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


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Share ``successes / n`` with the score interval of Wilson (1927), without continuity correction.

    Raises ValueError unless ``0 <= successes <= n`` and ``n >= 1``.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(
            f"{successes} successes of {n}: there must be at least one trial, and no more successes than n"
        )
    z = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    # At the ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n)


def bootstrap(
    values: Sequence[float] | npt.NDArray[np.floating],
    *,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Mean with the percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13). Same seed, same interval."""
    data = _finite(values)
    means = _resampled_means(data, np.random.default_rng(seed), resamples)
    tail = 50 * (1 - _checked(confidence))
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_bootstrap(
    before: Sequence[float] | npt.NDArray[np.floating],
    after: Sequence[float] | npt.NDArray[np.floating],
    *,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of ``after - before`` per question, questions resampled as pairs. Raises ValueError if lengths differ."""
    if len(before) != len(after):
        raise ValueError(f"paired data of different lengths: {len(before)} and {len(after)}")
    return bootstrap(_finite(after) - _finite(before), seed=seed, resamples=resamples, confidence=confidence)


def mean_t(values: Sequence[float] | npt.NDArray[np.floating], confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval, for a handful of runs. Raises ValueError for fewer than two."""
    from scipy.stats import t  # slow to import, and needed only here

    data = _finite(values)
    if len(data) < 2:
        raise ValueError("an interval over runs needs at least two of them")
    half = t.ppf(0.5 + _checked(confidence) / 2, len(data) - 1) * data.std(ddof=1) / math.sqrt(len(data))
    return Interval(float(data.mean()), float(data.mean() - half), float(data.mean() + half), len(data))


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


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: write a number between 0 and 1, such as 0.95")
    return confidence
