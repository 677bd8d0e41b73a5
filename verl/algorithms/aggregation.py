"""How token losses become one number: weights from global totals, so that loss = sum(weights * token_loss)."""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.config import LossConfig
from verl.algorithms.tokens import Totals, runs


def token_weights(sequence: Tensor, totals: Totals, config: LossConfig, *, dtype: torch.dtype) -> Tensor:
    """Weight of each policy token, ``[n]`` of ``dtype``, for ``config.reduction``.

    With T policy tokens and S sequences in the global batch, and L policy tokens in the token's own sequence:

    - ``token-mean``: 1 / T (DAPO)
    - ``sequence-mean-token-sum``: 1 / S
    - ``sequence-mean-token-mean``: 1 / (S L) (GRPO)
    - ``token-sum-constant``: 1 / (S C), C = ``config.constant_tokens`` (Dr.GRPO)

    The weights of a batch are the same however it is split into micro-batches of whole sequences.
    """
    ones = torch.ones(sequence.shape, dtype=dtype, device=sequence.device)
    match config.reduction:
        case "token-mean":
            return ones / totals.policy_tokens
        case "sequence-mean-token-sum":
            return ones / totals.sequences
        case "sequence-mean-token-mean":
            index, lengths = runs(sequence)
            return ones / (lengths[index] * totals.sequences)
        case "token-sum-constant":
            assert config.constant_tokens is not None  # LossConfig checks it
            return ones / (totals.sequences * config.constant_tokens)
