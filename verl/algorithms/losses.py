"""Token losses: policy tokens in, one loss a token out; how tokens add up is ``aggregation``'s business.

Contract of a loss: ``loss(tokens, totals, config) -> TokenLoss``. ``values [n]`` carries gradient through
``tokens.logprobs`` alone; ``marks`` are detached ``[n]`` tensors whose mean over policy tokens is a metric. A is the
advantage, r = new / old.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from verl.algorithms.config import LossConfig
from verl.algorithms.kl import MAX_LOG_RATIO
from verl.algorithms.tokens import PolicyTokens, Totals


class TokenLoss(NamedTuple):
    """What a loss says of each policy token."""

    values: Tensor
    marks: dict[str, Tensor]


class Loss(Protocol):
    """The contract above."""

    def __call__(self, tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss: ...


def bounded(log_ratio: Tensor) -> Tensor:
    """A log-ratio clamped so that its exponential is finite."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def ratio_of(tokens: PolicyTokens) -> Tensor:
    """new / old of each token, ``[n]``."""
    return bounded(tokens.logprobs - tokens.old_logprobs).exp()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) and where the clip is the larger, both ``[n]``."""
    low, high = clip
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), (clipped > plain).to(ratio.dtype)


def ppo_clip(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Clipped surrogate (Schulman et al. 2017, equation 7), bounds asymmetric (DAPO), with dual clip (Ye et al. 2020).

    max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)); where A < 0, at most -A dual_clip.
    """
    ratio, advantages = ratio_of(tokens), tokens.advantages
    values, clipped = clipped_surrogate(ratio, advantages, config.clip)
    marks = {"clip_fraction": clipped, "ratio_mean": ratio.detach()}
    if config.dual_clip is not None:
        bound = -advantages * config.dual_clip
        over = (advantages < 0) & (values > bound)
        values = torch.where(over, bound, values)
        marks["dual_clip_fraction"] = over.to(values.dtype)
    return TokenLoss(values, marks)


def cispo(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Clipped importance weight on REINFORCE (MiniMax-M1 2025): -sg(clip(r)) A log p.

    No token's gradient is dropped: the clip bounds the weight, which carries no gradient.
    """
    low, high = config.clip
    ratio = ratio_of(tokens).detach()
    weight = ratio.clamp(1 - low, 1 + high)
    marks = {"clip_fraction": (weight != ratio).to(ratio.dtype), "ratio_mean": ratio}
    return TokenLoss(-weight * tokens.advantages * tokens.logprobs, marks)


def sapo(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Soft gate in place of the clip (Gao et al. 2025): -A (4 / t) sigmoid(t (r - 1)), t by the sign of A.

    The gradient is that of the plain ratio at r = 1 and fades on both sides.
    """
    ratio = ratio_of(tokens)
    steepness = torch.full_like(ratio, config.sapo_temperature_negative)
    steepness[tokens.advantages > 0] = config.sapo_temperature_positive
    gate = torch.sigmoid(steepness * (ratio - 1)) * 4 / steepness
    return TokenLoss(-tokens.advantages * gate, {"ratio_mean": ratio.detach()})


def reinforce(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Policy gradient without ratio or clip (Williams 1992): -A log p. Right for one update a batch."""
    return TokenLoss(-tokens.advantages * tokens.logprobs, {})


def weighted_nll(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> TokenLoss:
    """Weighted negative log-likelihood, -w log p, w = ``tokens.advantages``; supervised fine-tuning is w = 1."""
    return TokenLoss(-tokens.advantages * tokens.logprobs, {"nll": -tokens.logprobs.detach()})
