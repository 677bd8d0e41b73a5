"""Importance correction: weights that undo the difference between who sampled a token and who is trained on it.

w = p_old / p_rollout differs from 1 where the engine computes other log-probs than the trainer (kernels, precision) and
where samples are stale. Weights carry no gradient and are never renormalised: a rejected token still counts in the
denominators, so the correction can only make a step smaller, and the same on any split of the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from verl.algorithms.config import CorrectionConfig
from verl.algorithms.kl import kl_estimate
from verl.algorithms.losses import bounded
from verl.algorithms.tokens import PolicyTokens, run_mean, run_sum, runs


class Correction(NamedTuple):
    """``weights [n]`` to multiply token losses by, and ``marks``: ``[n]`` tensors whose mean is a metric."""

    weights: Tensor
    marks: dict[str, Tensor]


def importance_correction(
    old_logprobs: Tensor, rollout_logprobs: Tensor, sequence: Tensor, config: CorrectionConfig
) -> Correction:
    """Weights of ``config.mode`` at ``config.level``, 0 in a sequence that is rejected whole; with mode ``none`` and no
    rejection they are 1 and the marks still measure.

    Truncation: Yao et al. 2025 (token), Espeholt et al. 2018 (the idea); band: IcePop (Ling team 2025). A token whose
    rollout log-prob is not a finite number says nothing of the engine: its weight is 0, it counts as no disagreement,
    and ``rollout_unknown`` is the share of such tokens. Other marks: the absolute gap of log-probs, KL(rollout || old)
    by k3, w and w^2 (``marks.final_metrics`` makes the effective sample size of them), and the shares of tokens that
    the mode changed and that were rejected with their sequence.
    """
    known = rollout_logprobs.isfinite()
    difference = (old_logprobs - rollout_logprobs).where(known, 0.0).detach()
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
        "rollout_kl": kl_estimate(-difference, torch.zeros_like(difference), "k3"),
        "rollout_ratio": ratio,
        "rollout_ratio_square": ratio.square(),
        "rollout_unknown": (~known).to(ratio.dtype),
        "correction_fraction": changed.to(ratio.dtype),
    }
    if config.rejects_sequences:
        rejected = _rejected(difference, sequence, config)
        weights, marks["rejected_fraction"] = weights * ~rejected, rejected.to(ratio.dtype)
    return Correction(weights * known, marks)


def off_policy_mask(tokens: PolicyTokens, bound: float) -> Tensor:
    """1, or 0 for a token of negative advantage in a sequence that the policy has left, ``[n]`` (DeepSeek-AI 2025).

    Left: the mean over its tokens of log p_rollout - log p is above ``bound`` nats. Good samples stay: they pull back.
    """
    rollout = tokens.given("rollout_logprobs")
    fall = (rollout - tokens.logprobs.detach()).where(rollout.isfinite(), 0.0)
    index, lengths = runs(tokens.sequence)
    left = (run_mean(fall, index, lengths) > bound)[index]
    return 1 - (left & (tokens.advantages < 0)).to(fall.dtype)


def _rejected(difference: Tensor, sequence: Tensor, config: CorrectionConfig) -> Tensor:
    """Whether each token's sequence disagrees too much, on average or at one token, bool ``[n]``."""
    index, lengths = runs(sequence)
    kl = kl_estimate(-difference, torch.zeros_like(difference), config.reject_estimator)
    mean = run_mean(kl, index, lengths)
    largest = torch.zeros_like(mean).scatter_reduce(0, index, kl, "amax")
    over = torch.zeros_like(mean, dtype=torch.bool)
    for value, bound in ((mean, config.reject_mean_above), (largest, config.reject_max_above)):
        over |= value > (math.inf if bound is None else bound)
    return over[index]


def _at_level(difference: Tensor, sequence: Tensor, config: CorrectionConfig) -> Tensor:
    """Log-ratio of each token, ``[n]``: its own, or the sum or mean over its sequence."""
    if config.level == "token":
        return bounded(difference)
    index, lengths = runs(sequence)
    if config.level == "sequence":
        return bounded(run_sum(difference, index, len(lengths)))[index]
    return bounded(run_mean(difference, index, lengths))[index]
