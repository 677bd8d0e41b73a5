"""Estimators of KL(policy || reference) from sampled tokens (Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.config import KlEstimator

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exponentiation: exp(20) is 4.9e8, finite in every dtype but float16."""


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """KL of each token, ``[n]``, with d = logprobs - reference_logprobs:

    - ``k1`` = d: unbiased value, high variance; its gradient is zero in expectation
    - ``k2`` = d^2 / 2: biased value, unbiased gradient of the KL
    - ``k3`` = exp(-d) - 1 + d: unbiased value, never negative; biased gradient. Below d = -20 it stays at its value
      there, and its gradient is 0
    - ``abs`` = |d|
    - with ``+``: the estimator's value with the gradient of k2 (straight-through)
    """
    difference = logprobs - reference_logprobs
    if not estimator.endswith("+"):
        return _estimate(difference, estimator)
    k2 = _estimate(difference, "k2")
    return _estimate(difference, estimator.removesuffix("+")).detach() + (k2 - k2.detach())


def _estimate(difference: Tensor, estimator: str) -> Tensor:
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            # One clamp for both terms: the plain one left alone would pull the wrong way.
            near = difference.clamp(min=-MAX_LOG_RATIO)
            return torch.expm1(-near) + near
        case "abs":
            return difference.abs()
    raise ValueError(f"no KL estimator is named {estimator!r}")
