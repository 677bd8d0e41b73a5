"""What is taken off a reward: for its length (DAPO), for what it spent, and for its KL to the reference model."""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.control_config import BudgetConfig, KlRewardConfig, OverlongConfig

MAX_ERROR = 0.2
"""The adaptive controller treats a KL that is off by more than 20 % as off by 20 % (Ziegler et al. 2019)."""


def overlong_penalty(lengths: Tensor, limit_tokens: int, config: OverlongConfig) -> Tensor:
    """What to add to each reward for its length (Yu et al. 2025, equation 13), float32 ``[s]`` between -penalty and 0.

    ``lengths`` counts policy tokens, ``limit_tokens`` is how many an episode may generate: an observation is not the
    policy's to shorten. Raises ValueError if the buffer is longer than the limit.
    """
    if config.buffer_tokens == 0:
        return torch.zeros(lengths.shape)
    if config.buffer_tokens > limit_tokens:
        raise ValueError(f"overlong.buffer_tokens={config.buffer_tokens} is above the limit of {limit_tokens} tokens")
    excess = lengths.float() - (limit_tokens - config.buffer_tokens)
    return -config.penalty * (excess / config.buffer_tokens).clamp(0.0, 1.0)


def next_price(price: float, spent: float, config: BudgetConfig) -> float:
    """The price of the next step, from what the episodes of this one spent on average.

    Projected dual ascent on max E[reward] subject to E[spent] <= limit (RCPO, Tessler et al. 2018):
    price + rate (spent - limit), within 0 and ``max_price``. The price is the whole state: save it with the run.
    """
    return min(config.max_price, max(0.0, price + config.rate * (spent - config.limit)))


def next_coefficient(coefficient: float, kl: float, sequences: int, config: KlRewardConfig) -> float:
    """The coefficient of the next step, from ``kl`` in nats a policy token over the ``sequences`` of this one.

    Adaptive: coefficient (1 + clip(kl / target - 1) min(1, sequences / horizon)): a step longer than the horizon counts
    as one horizon, or the coefficient could turn negative. It is the controller's whole state: save it
    with the run, or a resumed run starts again from ``config.coefficient``.
    """
    if config.controller == "fixed":
        return config.coefficient
    error = max(-MAX_ERROR, min(MAX_ERROR, kl / config.target - 1.0))
    return coefficient * (1.0 + error * min(1.0, sequences / config.horizon_sequences))
