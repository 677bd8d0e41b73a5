"""The E-step of a self-training by expectation-maximisation: what each sequence counts in a weighted likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verl.algorithms.config import AdvantageConfig


def group_weights(scores: Tensor, rewards: Tensor, index: Tensor, config: AdvantageConfig) -> Tensor:
    """Weights of ExSearch (arXiv 2505.20128), 0 or more, ``[s]``.

    ``scores [s]`` is the log-prob of the accepted answer after what the sequence found, l its negative; ``index [s]``
    numbers the groups from 0. By ``config.weight``, with n the size of the group:

    - ``softmax``: exp(score / temperature) over its sum in the group, so that a group's weights sum to 1: the paper's
    - ``exp``: 4 exp(-l), not normalised: the released code of the paper's version
    - ``cost_share``: l over its sum in the group: the released main version, in which worse sequences weigh more
    - ``reward``: the reward itself: a metric as weight, or a filter where it is 0 or 1
    - ``uniform``: 1 / n, whatever the score: self-training on accepted answers, the control

    Raises ValueError for a score that is not finite, and for a reward below 0 as weight.
    """
    if not scores.isfinite().all():
        raise ValueError("the log-prob of an accepted answer is not finite")
    groups = int(index.max()) + 1 if len(index) else 0

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(groups).index_add(0, index, values)[index]

    match config.weight:
        case "softmax":
            scaled = scores / config.temperature
            best = scaled.new_full((groups,), -math.inf).scatter_reduce(0, index, scaled, "amax")
            likelihood = (scaled - best[index]).exp()
            return likelihood / total(likelihood)
        case "exp":
            return 4 * scores.exp()
        case "cost_share":
            costs = total(scores)  # all 0 where every answer is certain: then they are alike
            return torch.where(costs < 0, scores / costs, 1 / total(torch.ones_like(scores)))
        case "reward":
            if (rewards < 0).any():
                raise ValueError("a reward below 0 is no weight: take another reward, or weight=softmax")
            return rewards
        case "uniform":
            return 1 / total(torch.ones_like(scores))
