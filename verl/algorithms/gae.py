"""Returns and generalised advantage estimation, over policy tokens alone: observations are not there to be passed.

All tensors are ``[n]`` over policy tokens (``[m]`` over turns), sequences contiguous and whole, on the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.advantages import whiten
from verl.algorithms.config import AdvantageConfig
from verl.algorithms.tokens import runs


def discounted_returns(rewards: Tensor, sequence: Tensor, gamma: float) -> Tensor:
    """Return to go G_t = r_t + gamma G_{t+1} within each sequence, ``[n]``; t counts policy tokens."""
    index, lengths = runs(sequence)
    if not len(lengths):
        return rewards.clone()
    starts = lengths.cumsum(0) - lengths
    column = torch.arange(len(sequence), device=sequence.device) - starts[index]
    table = rewards.new_zeros(len(lengths), int(lengths.max()) + 1)
    table[index, column] = rewards
    for t in range(table.shape[1] - 2, -1, -1):
        table[:, t] += gamma * table[:, t + 1]
    return table[index, column]


def gae(rewards: Tensor, values: Tensor, sequence: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16): ``(advantages [n], returns [n])``.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return_t = A_t + V_t; V after the last
    policy token of a sequence is 0. Over an observation the next value and the running sum pass unchanged: t counts
    policy tokens.
    """
    following = torch.zeros_like(values)
    if len(values):
        same = sequence[1:] == sequence[:-1]
        following[:-1] = torch.where(same, values[1:], 0.0)
    advantages = discounted_returns(rewards + gamma * following - values, sequence, gamma * lam)
    return advantages, advantages + values


def gae_advantages(rewards: Tensor, values: Tensor, sequence: Tensor, config: AdvantageConfig) -> tuple[Tensor, Tensor]:
    """What PPO trains on, from the whole batch: whitened ``gae`` advantages ``[n]``, and the returns ``[n]`` as they
    are.

    An episode that was cut short ends like any other: nothing is expected after its last token.
    """
    advantages, returns = gae(rewards, values, sequence, gamma=config.gamma, lam=config.lam)
    return whiten(advantages, config.epsilon), returns
