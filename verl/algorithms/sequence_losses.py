"""Losses whose ratio is a sequence's: the same contract as ``losses``, each token holding its share of its sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.config import LossConfig
from verl.algorithms.losses import TokenLoss, bounded, clipped_surrogate
from verl.algorithms.tokens import PolicyTokens, Totals, run_mean, run_sum, runs


def gspo(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Clip of the length-normalised sequence ratio (Zheng et al. 2025), in the token form of the paper.

    s = exp(mean log r) is one value a sequence; token t takes sg(s) p_t / sg(p_t), whose gradient is s grad log p_t.
    """
    index, lengths = runs(tokens.sequence)
    mean = run_mean((tokens.logprobs - tokens.old_logprobs).detach(), index, lengths)[index]
    ratio = (bounded(mean) + tokens.logprobs - tokens.logprobs.detach()).exp()
    values, clipped = clipped_surrogate(ratio, tokens.advantages, config.clip)
    return TokenLoss(values, {"clip_fraction": clipped, "ratio_mean": ratio.detach()})


def gmpo(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Geometric mean of clipped token ratios (Zhao et al. 2025): -A exp(mean of clipped log r), one value a sequence.

    log r is clipped to [-clip_low, clip_high], on the side that would raise the objective, as in PPO.
    """
    low, high = config.clip
    index, lengths = runs(tokens.sequence)
    log_ratio = bounded(tokens.logprobs - tokens.old_logprobs)
    inside = log_ratio.clamp(-low, high)
    pessimistic = torch.where(
        tokens.advantages >= 0, torch.minimum(log_ratio, inside), torch.maximum(log_ratio, inside)
    )
    geometric = run_mean(pessimistic, index, lengths).exp()[index]
    clipped = (pessimistic != log_ratio).to(log_ratio.dtype)
    return TokenLoss(-tokens.advantages * geometric, {"clip_fraction": clipped, "ratio_mean": geometric.detach()})


def kto(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024), from desirable and undesirable sequences.

    With m = log p / p_reference of the whole sequence and z = ``totals.kl_point``: weight (1 - sigmoid(beta (m - z)))
    where ``tokens.advantages`` > 0, weight (1 - sigmoid(beta (z - m))) where < 0, nothing where 0. Only the sign
    counts.
    """
    index, lengths = runs(tokens.sequence)
    margin = run_sum(tokens.logprobs - tokens.given("reference_logprobs"), index, len(lengths))[index]
    sign = tokens.advantages.sign()
    weight = config.kto_desirable_weight * (sign > 0) + config.kto_undesirable_weight * (sign < 0)
    values = weight * torch.sigmoid(-sign * config.kto_beta * (margin - totals.kl_point))
    return TokenLoss(values, {"kto_reward_margin": sign * config.kto_beta * margin.detach()})


def kto_kl_point(logprobs: Tensor, reference_logprobs: Tensor, sequence: Tensor) -> float:
    """KTO's z0 for ``Totals.kl_point``: the mean over sequences of log p / p_reference, at least 0; of the global
    batch.

    The sequences must not be the labelled answers of their own prompts unless the policy sampled them: for recorded
    answers give mismatched ones (the answer of another row), as the paper does. Takes ``[n]`` tensors without gradient.
    """
    index, lengths = runs(sequence)
    if not len(lengths):
        return 0.0
    return max(0.0, float(run_sum(logprobs - reference_logprobs, index, len(lengths)).mean()))
