"""Importance correction: weights that undo the difference between who sampled a token and who is trained on it.

w = p_old / p_rollout differs from 1 where the engine computes other log-probs than the trainer (kernels, precision) and
where samples are stale. Weights carry no gradient and are never renormalised: a rejected token still counts in the
denominators, so the correction can only make a step smaller, and the same on any split of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from verl.algorithms.config import CorrectionConfig
from verl.algorithms.kl import kl_estimate
from verl.algorithms.losses import bounded
from verl.algorithms.tokens import run_mean, run_sum, runs


class Correction(NamedTuple):
    """``weights [n]`` to multiply token losses by, and ``marks``: ``[n]`` tensors whose mean is a metric."""

    weights: Tensor
    marks: dict[str, Tensor]


def importance_correction(
    old_logprobs: Tensor, rollout_logprobs: Tensor, sequence: Tensor, config: CorrectionConfig
) -> Correction:
    """Weights of ``config.mode`` at ``config.level``; with mode ``none`` they are 1 and the marks still measure.

    Truncation: Yao et al. 2025 (token), Espeholt et al. 2018 (the idea); band: IcePop (Ling team 2025). Marks: the
    absolute gap of log-probs, KL(rollout || old) by k3, w and w^2 (``metrics.summarize`` makes the effective sample
    size of them), and the share of tokens that the mode changed.
    """
    difference = (old_logprobs - rollout_logprobs).detach()
    ratio = _at_level(difference, sequence, config).exp()
    inside = (ratio >= config.low) & (ratio <= config.high)
    match config.mode:
        case "none" | None:
            weights, changed = torch.ones_like(ratio), torch.zeros_like(ratio)
        case "truncate":
            weights, changed = ratio.clamp(max=config.high), ratio > config.high
        case "band":
            weights, changed = ratio * inside, ~inside
        case "reject":
            weights, changed = inside.to(ratio.dtype), ~inside
    marks = {
        "rollout_logprob_gap": difference.abs(),
        "rollout_kl": kl_estimate(rollout_logprobs.detach(), old_logprobs.detach(), "k3"),
        "rollout_ratio": ratio,
        "rollout_ratio_square": ratio.square(),
        "correction_fraction": changed.to(ratio.dtype),
    }
    return Correction(weights, marks)


def _at_level(difference: Tensor, sequence: Tensor, config: CorrectionConfig) -> Tensor:
    """Log-ratio of each token, ``[n]``: its own, or the sum or mean over its sequence."""
    if config.level == "token":
        return bounded(difference)
    index, lengths = runs(sequence)
    if config.level == "sequence":
        return bounded(run_sum(difference, index, len(lengths)))[index]
    return bounded(run_mean(difference, index, lengths))[index]
