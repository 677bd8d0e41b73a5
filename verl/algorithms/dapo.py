"""DAPO's two rules outside the loss (Yu et al. 2025): when to sample more groups, and what too long costs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from verl.algorithms.control_config import DynamicSamplingConfig, OverlongConfig


def sampling_decision(
    informative_groups: int, wanted_groups: int, refills_done: int, config: DynamicSamplingConfig
) -> Literal["train", "refill"]:
    """Whether to train on what there is or to sample more tasks: refills are bounded, so a step always ends.

    After the last refill the step proceeds with the groups it has; the caller counts the shortfall, and skips the
    update where there is no group at all.
    """
    enough = informative_groups >= wanted_groups
    if not config.enabled or enough or refills_done >= config.max_refills:
        return "train"
    return "refill"


def overlong_penalty(lengths: Tensor, limit_tokens: int, config: OverlongConfig) -> Tensor:
    """What to add to each reward for its length (equation 13), float32 ``[s]`` between -penalty and 0.

    ``lengths`` counts policy tokens, ``limit_tokens`` is how many an episode may generate: an observation is not the
    policy's to shorten. Raises ValueError if the buffer is longer than the limit.
    """
    if config.buffer_tokens == 0:
        return torch.zeros(lengths.shape)
    if config.buffer_tokens > limit_tokens:
        raise ValueError(f"overlong.buffer_tokens={config.buffer_tokens} is above the limit of {limit_tokens} tokens")
    excess = lengths.float() - (limit_tokens - config.buffer_tokens)
    return -config.penalty * (excess / config.buffer_tokens).clamp(0.0, 1.0)
