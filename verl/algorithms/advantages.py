"""Advantages of whole sequences from their rewards: a statistic of the batch, computed before it is split.

Rewards are ``[s]``, one a sequence; ``groups [s]`` holds the id of each sequence's task. Arithmetic is float64. Two
rules hold for every estimator that compares within a group: a group whose rewards are all equal gets exactly 0, and
so does a group of one (its siblings were aborted, say), since there is nothing to compare with. Whitening over the
batch, where an estimator has it, comes after and may move those zeros a little. A third rule holds for all: what KL
takes off a reward passes the baseline and is never divided by a deviation, or a group of equal rewards would blow the
noise of its KL up to full size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from verl.algorithms.config import AdvantageConfig
from verl.algorithms.weights import group_weights

Given = TypeVar("Given")


def group_advantages(
    rewards: Tensor,
    groups: Tensor,
    config: AdvantageConfig,
    *,
    lengths: Tensor | None = None,
    greedy_rewards: Tensor | None = None,
    parts: Mapping[str, Tensor] | None = None,
    added: Tensor | None = None,
    gold_logprobs: Tensor | None = None,
) -> Tensor:
    """One advantage a sequence, ``[s]`` in the dtype of ``rewards``. Estimators, with r the reward, m and d the mean
    and unbiased standard deviation of the group's rewards, n its size:

    - ``grpo``: (r - m) / (d + epsilon) (Shao et al. 2024); ``dr_grpo``: r - m (Liu et al. 2025)
    - ``gdpo``: grpo of each part of the reward by itself, weighted, summed, then whitened over the sequences of the
      batch (Liu et al. 2026)
    - ``rloo``: n / (n - 1) (r - m), the mean of the others as baseline (Ahmadian et al. 2024)
    - ``reinforce_pp``: r whitened over the policy tokens of the batch; ``reinforce_pp_baseline``: r - m whitened so
      (Hu 2025)
    - ``remax``: r - ``greedy_rewards``, the reward of the task's greedy answer (Li et al. 2023)
    - ``opo``: r - the length-weighted mean of the group (Hao et al. 2025)
    - ``gpg``: (r - m) S / S', S' the sequences in groups whose rewards differ (Chu et al. 2025)
    - ``pass_at_k``: what the sequence adds to the best of k, averaged over the draws of k from the group that hold it
      (Tang et al. 2025; Walder and Karkhanis 2025); k = n gives the best one its lead over the second, the others 0
    - ``softmax``: no advantage but a weight, 0 or more, of a log-likelihood: see ``group_weights``

    ``lengths [s]``, policy tokens of each sequence, is needed by reinforce_pp, reinforce_pp_baseline and opo;
    ``greedy_rewards [s]`` by remax; ``parts``, ``[s]`` by name, by gdpo; ``gold_logprobs [s]`` by softmax.
    ``added [s]`` is a part of each reward that must not be divided (what KL takes off it). Raises ValueError where one
    is missing, and for ``gae``, which is not a sequence's.
    """
    r = rewards.double()
    rest = torch.zeros_like(r) if added is None else added.double()
    index = torch.unique(groups, return_inverse=True)[1]
    if config.name == "softmax":
        scores = _given("gold_logprobs", gold_logprobs)
        return group_weights(scores.double(), r, index, config).to(rewards.dtype)
    return _estimate(r, rest, index, config, lengths, greedy_rewards, parts).to(rewards.dtype)


def _estimate(
    r: Tensor,
    added: Tensor,
    index: Tensor,
    config: AdvantageConfig,
    lengths: Tensor | None,
    greedy_rewards: Tensor | None,
    parts: Mapping[str, Tensor] | None,
) -> Tensor:
    """``group_advantages`` in float64, groups numbered from 0."""
    match config.name:
        case "grpo":
            return _standardised(r, index, config.epsilon) + _centred(added, index)
        case "dr_grpo":
            return _centred(r + added, index)
        case "gdpo":
            given = _given("parts", parts)
            pieces = [
                w * _standardised(given[name].double(), index, config.epsilon) for name, w in config.parts.items()
            ]
            return whiten(torch.stack(pieces).sum(0), config.epsilon) + _centred(added, index)
        case "rloo":
            n = _group_size(r, index)
            return _centred(r + added, index) * n / (n - 1).clamp(min=1)
        case "reinforce_pp":
            weight = _given("lengths", lengths).double()
            return whiten(r, config.epsilon, weight) + added - (weight * added).sum() / weight.sum().clamp(min=1)
        case "reinforce_pp_baseline":
            weight = _given("lengths", lengths).double()
            return whiten(_centred(r, index), config.epsilon, weight) + _centred(added, index)
        case "remax":
            return r + added - _given("greedy_rewards", greedy_rewards).double()
        case "opo":
            weight = _given("lengths", lengths).double()
            baseline = _group_sum((r + added) * weight, index) / _group_sum(weight, index).clamp(min=1)
            return (r + added - baseline) * differs(r + added, index)
        case "gpg":
            useful = differs(r + added, index)
            return _centred(r + added, index) * len(r) / useful.sum().clamp(min=1)
        case "pass_at_k":
            return _pass_at_k(r + added, index, config.k)
        case "gae" | "softmax":
            raise ValueError("gae makes token advantages from a critic's values: call gae.gae_advantages")


def _given(name: str, value: Given | None) -> Given:
    if value is None:
        raise ValueError(f"this advantage needs {name}")
    return value


def _group_sum(values: Tensor, index: Tensor) -> Tensor:
    """Sum over the group of each sequence, ``[s]`` -> ``[s]``."""
    groups = int(index.max()) + 1 if len(index) else 0
    return values.new_zeros(groups).index_add(0, index, values)[index]


def _group_size(values: Tensor, index: Tensor) -> Tensor:
    return _group_sum(torch.ones_like(values), index)


def _group_mean(values: Tensor, index: Tensor) -> Tensor:
    return _group_sum(values, index) / _group_size(values, index)


def _group_std(values: Tensor, index: Tensor) -> Tensor:
    squares = _group_sum((values - _group_mean(values, index)).square(), index)
    return (squares / (_group_size(values, index) - 1).clamp(min=1)).sqrt()


def differs(values: Tensor, groups: Tensor) -> Tensor:
    """Whether the values of each one's group differ, bool ``[s]``; exact, where a computed deviation may round to
    above 0."""
    index = torch.unique(groups, return_inverse=True)[1]
    count = int(index.max()) + 1 if len(index) else 0
    low = values.new_full((count,), math.inf).scatter_reduce(0, index, values, "amin")
    high = values.new_full((count,), -math.inf).scatter_reduce(0, index, values, "amax")
    return (high > low)[index]


def _centred(values: Tensor, index: Tensor) -> Tensor:
    return (values - _group_mean(values, index)) * differs(values, index)


def _standardised(values: Tensor, index: Tensor, epsilon: float) -> Tensor:
    return _centred(values, index) / (_group_std(values, index) + epsilon)


def whiten(values: Tensor, epsilon: float, weight: Tensor | None = None) -> Tensor:
    """Mean 0 and unbiased deviation 1 over the whole batch, ``[n]``.

    With ``weight [n]`` each value counts so often: a sequence's once for each of its tokens.
    """
    weight = torch.ones_like(values) if weight is None else weight
    total = weight.sum()
    mean = (weight * values).sum() / total.clamp(min=1)
    variance = (weight * (values - mean).square()).sum() / (total - 1).clamp(min=1)
    return (values - mean) / (variance.sqrt() + epsilon)


def _pass_at_k(rewards: Tensor, index: Tensor, k: int | None) -> Tensor:
    """Mean over the k-subsets that hold i of max(subset) - max(subset without i), for each sequence i.

    Sorted upwards, i leads a subset only if it ranks highest in it; rank j < i is then second in C(j, k - 2) of them.
    """
    advantages = torch.zeros_like(rewards)
    for group in range(int(index.max()) + 1 if len(index) else 0):
        members = (index == group).nonzero().squeeze(1)
        n = len(members)
        if n < 2:
            continue
        size = min(k or n, n)  # a group that lost samples to an outage draws as many as it has
        ordered, order = rewards[members].sort()
        seconds = torch.tensor([float(math.comb(j, size - 2)) for j in range(n)], dtype=rewards.dtype)
        lead = (ordered[:, None] - ordered[None, :]).tril() @ seconds
        advantages[members[order]] = lead / math.comb(n - 1, size - 1)
    return advantages
