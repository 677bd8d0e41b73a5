"""What a loss sees: policy tokens alone, and sums over the sequences they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Totals:
    """Facts of the global batch of one optimizer step, over every micro-batch of every rank: what means divide by."""

    policy_tokens: int
    sequences: int
    """Sequences with at least one policy token; one without any has nothing to train on and is not counted."""
    kl_point: float = 0.0
    """KTO's reference point z0, from ``sequence_losses.kto_kl_point``; other losses do not read it."""

    def __post_init__(self) -> None:
        if self.policy_tokens < 1 or self.sequences < 1:
            raise ValueError(f"{self.policy_tokens} policy tokens in {self.sequences} sequences: nothing to train on")

    @classmethod
    def count(cls, policy_tokens_by_sequence: Sequence[int]) -> Totals:
        """Totals from the number of policy tokens of each sequence of the global batch."""
        return cls(sum(policy_tokens_by_sequence), sum(n > 0 for n in policy_tokens_by_sequence))


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """What a loss sees of a micro-batch: ``[n]`` tensors over its policy tokens, sequences contiguous and whole."""

    logprobs: Tensor
    """Log-probs under the weights being trained, with gradient."""
    old_logprobs: Tensor
    """Log-probs under the weights at the start of the batch, no gradient; with one update, ``logprobs.detach()``."""
    advantages: Tensor
    """Credit of each token; the weight of each token for weighted_nll, the sign of the label for kto."""
    sequence: Tensor
    """int64, which sequence each token belongs to; only equality matters, ids need not be dense."""
    rollout_logprobs: Tensor | None = None
    """Log-probs under the engine that sampled, no gradient; needed where ``LossConfig.needs_rollout``."""
    reference_logprobs: Tensor | None = None
    """Log-probs under the reference model, no gradient; needed where ``LossConfig.needs_reference``."""
    entropy: Tensor | None = None
    """Entropy of the distribution each token was drawn from, nats; with gradient where it has a coefficient."""
    span: Tensor | None = None
    """int64 from ``policy_spans``: which turn each token belongs to; None takes a sequence as one turn (the guard)."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and value.shape != self.logprobs.shape:
                raise ValueError(
                    f"{item.name} has shape {tuple(value.shape)}, logprobs {tuple(self.logprobs.shape)}: "
                    "every tensor has one entry a policy token"
                )

    def given(self, name: str) -> Tensor:
        """The optional tensor of that name. Raises ValueError if it is None."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"the loss reads {name}, and it is None")
        return value


def policy_spans(policy_mask: Tensor, sequence_index: Tensor) -> Tensor:
    """Number the unbroken runs of policy tokens (turns): ``[tokens]`` twice -> int64 ``[n]`` from 0.

    A span ends at an observation and at the end of its sequence.
    """
    positions = policy_mask.nonzero().squeeze(1)
    sequence = sequence_index[positions]
    starts = (positions[1:] != positions[:-1] + 1) | (sequence[1:] != sequence[:-1])
    return torch.cat([starts.new_zeros(min(1, len(positions))), starts]).cumsum(0)


def runs(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Number the runs of equal ids: ``index [n]`` from 0, and ``lengths [runs]``, both int64."""
    _, index, lengths = torch.unique_consecutive(ids, return_inverse=True, return_counts=True)
    return index, lengths


def run_sum(values: Tensor, index: Tensor, num_runs: int) -> Tensor:
    """Sum of ``values [n]`` over each run, ``[num_runs]``; differentiable."""
    return values.new_zeros(num_runs).index_add(0, index, values)


def run_mean(values: Tensor, index: Tensor, lengths: Tensor) -> Tensor:
    """Mean of ``values [n]`` over each run, ``[runs]``; differentiable."""
    return run_sum(values, index, len(lengths)) / lengths.to(values.dtype)
