"""The critic's loss: squared error to the returns, clipped around the old values (PPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.config import ValueLossConfig
from verl.algorithms.losses import TokenLoss
from verl.algorithms.objective import Objective
from verl.algorithms.tokens import Totals


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, config: ValueLossConfig) -> TokenLoss:
    """Half the larger of (V - R)^2 and (clip(V, V_old - clip, V_old + clip) - R)^2, ``[n]``.

    ``values`` carries gradient, the others none.
    """
    plain = (values - returns).square()
    if config.clip is None:
        return TokenLoss(0.5 * plain, {"value_error": plain.detach()})
    near = torch.clamp(values, old_values - config.clip, old_values + config.clip)
    clipped = (near - returns).square()
    marks = {"value_error": plain.detach(), "value_clip_fraction": (clipped > plain).to(plain.dtype)}
    return TokenLoss(0.5 * torch.maximum(plain, clipped), marks)


def value_objective(
    values: Tensor, old_values: Tensor, returns: Tensor, totals: Totals, config: ValueLossConfig
) -> Objective:
    """A micro-batch's share of the critic's loss, the mean of ``value_loss`` over the policy tokens of the global
    batch."""
    token_loss = value_loss(values, old_values, returns, config)
    loss = token_loss.values.sum() / totals.policy_tokens
    metrics = {name: mark.sum() / totals.policy_tokens for name, mark in token_loss.marks.items()}
    return Objective(loss, metrics | {"value_loss": loss.detach()})


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(R - V) / var(R) over the policy tokens of the whole batch: 1 is perfect, 0 no better than a constant.

    0 where the returns do not vary.
    """
    variance = float(returns.double().var(correction=0)) if len(returns) else 0.0
    if variance == 0.0:
        return 0.0
    return 1.0 - float((returns.double() - values.double()).var(correction=0)) / variance
