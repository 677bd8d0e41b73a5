"""The whole objective of a micro-batch: loss, correction, KL, entropy and guard under the same weights.

The learner calls ``policy_objective`` on each micro-batch, runs backward on ``loss`` as it is (no division by the
number of micro-batches or ranks), and adds losses, gradients and metrics over micro-batches and ranks: the sums are
the global values. ``marks.final_metrics`` then makes the few metrics that are not sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from verl.algorithms.aggregation import token_weights
from verl.algorithms.config import LossConfig, LossName
from verl.algorithms.correction import importance_correction, off_policy_mask
from verl.algorithms.displacement import displacement_guard
from verl.algorithms.kl import kl_estimate
from verl.algorithms.losses import Loss, cispo, ppo_clip, reinforce, sapo, weighted_nll
from verl.algorithms.marks import batch_marks
from verl.algorithms.sequence_losses import gmpo, gspo, kto
from verl.algorithms.tokens import PolicyTokens, Totals

LOSSES: Mapping[LossName, Loss] = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "gmpo": gmpo,
    "cispo": cispo,
    "sapo": sapo,
    "reinforce": reinforce,
    "weighted_nll": weighted_nll,
    "kto": kto,
}


class Objective(NamedTuple):
    """A micro-batch's share of the global objective."""

    loss: Tensor
    """Scalar with gradient."""
    metrics: dict[str, Tensor]
    """Detached scalars, each already divided by a global total; add them over micro-batches and ranks."""


def policy_objective(tokens: PolicyTokens, totals: Totals, config: LossConfig) -> Objective:
    """Sum of weights x (correction x token loss + kl_coefficient KL - entropy_coefficient entropy + guard).

    An empty micro-batch (n = 0) gives 0. Raises ValueError if a tensor that the configuration needs is None.
    """
    weights = token_weights(tokens.sequence, totals, config, dtype=tokens.logprobs.dtype)
    values, marks = LOSSES[config.name](tokens, totals, config)
    marks = marks | batch_marks(tokens)
    marks["kl_old"] = kl_estimate(tokens.old_logprobs.detach(), tokens.logprobs.detach(), "k3")
    corrected, extra = _corrected(values, tokens, config)
    policy_loss = (weights * corrected).sum()
    regularizers, more = _regularizers(tokens, config)
    loss = policy_loss if regularizers is None else policy_loss + (weights * regularizers).sum()
    marks = marks | extra | more
    sums = torch.stack(list(marks.values())).sum(1) / totals.policy_tokens  # in few kernels
    metrics = dict(zip(marks, sums.unbind(), strict=True))
    return Objective(loss, metrics | {"policy_loss": policy_loss.detach(), "loss": loss.detach()})


def _corrected(values: Tensor, tokens: PolicyTokens, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Token losses times their importance weights; without rollout log-probs (recorded traces) as they are."""
    if tokens.rollout_logprobs is None and not config.needs_rollout:
        return values, {}
    rollout = tokens.given("rollout_logprobs")
    weights, marks = importance_correction(tokens.old_logprobs, rollout, tokens.sequence, config.correction)
    if config.off_policy_mask is not None:
        kept = off_policy_mask(tokens, config.off_policy_mask)
        weights, marks = weights * kept, {**marks, "off_policy_fraction": 1 - kept}
    return values * weights, marks


def _regularizers(tokens: PolicyTokens, config: LossConfig) -> tuple[Tensor | None, dict[str, Tensor]]:
    """What is added to each token's loss, ``[n]`` or None, and its marks; entropy and KL are measured wherever
    given."""
    terms: list[Tensor] = []
    marks: dict[str, Tensor] = {}
    if config.kl_coefficient > 0 or tokens.reference_logprobs is not None:
        kl = kl_estimate(tokens.logprobs, tokens.given("reference_logprobs"), config.kl_estimator)
        marks["kl_reference"] = kl.detach()
        terms += [config.kl_coefficient * kl] if config.kl_coefficient > 0 else []
    if config.entropy_coefficient > 0 or tokens.entropy is not None:
        entropy = tokens.given("entropy")
        marks["entropy"] = entropy.detach()
        terms += [-config.entropy_coefficient * entropy] if config.entropy_coefficient > 0 else []
    if config.guard.coefficient > 0:
        anchor = tokens.old_logprobs
        if config.guard.anchor == "rollout":
            rollout = tokens.given("rollout_logprobs")
            anchor = rollout.where(rollout.isfinite(), anchor)
        guard = displacement_guard(tokens, anchor.detach())
        marks |= {"guard": guard.values.detach(), "guard_fraction": guard.active}
        terms.append(config.guard.coefficient * guard.values)
    return (sum(terms[1:], terms[0]) if terms else None), marks
