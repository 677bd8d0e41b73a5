"""Likelihood-displacement guard (LLDS): a penalty where updates make good samples less likely.

Several updates on one batch can lower the likelihood of the very samples that earned reward, because they share tokens
with bad ones; searching agents collapse that way. The rule is the one of the ICML 2026 paper on Search-R1's collapse.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from verl.algorithms.tokens import PolicyTokens, run_sum, runs


class Guard(NamedTuple):
    """``values [n]``: nats of penalty of each token, with gradient; ``active [n]``: 1 where it is above 0."""

    values: Tensor
    active: Tensor


def displacement_guard(tokens: PolicyTokens, anchor_logprobs: Tensor) -> Guard:
    """How far each token of a good sample fell below the anchor, counted only in turns that fell as a whole.

    A token counts if its advantage is 0 or more, its turn (``tokens.span``, or the sequence) became less likely in
    sum, and it fell itself: max(0, anchor - log p). Where policy and anchor agree (the first update of a batch) all
    are 0.
    """
    index, lengths = runs(tokens.sequence if tokens.span is None else tokens.span)
    drop = anchor_logprobs - tokens.logprobs
    fell = (run_sum(drop.detach(), index, len(lengths)) > 0)[index]
    counted = fell & (tokens.advantages >= 0) & (drop.detach() > 0)
    active = counted.to(drop.dtype)
    return Guard(drop * active, active)
