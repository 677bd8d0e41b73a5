"""Marks: metrics that add up over micro-batches and ranks, and what is made of the sums at the end."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from verl.algorithms.tokens import PolicyTokens


def batch_marks(tokens: PolicyTokens) -> dict[str, Tensor]:
    """Marks of any loss, ``[n]`` detached: the share of tokens of good samples (advantage above 0), their log-probs,
    and how far those moved since the start of the batch; the numerators and the denominator of ``final_metrics``."""
    logprobs = tokens.logprobs.detach()
    good = (tokens.advantages > 0).to(logprobs.dtype)
    return {
        "good_fraction": good,
        "good_logprob": good * logprobs,
        "good_logprob_change": good * (logprobs - tokens.old_logprobs.detach()),
    }


def final_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Final metrics from the sums over micro-batches and ranks. Call once an update.

    ``good_logprob`` and ``good_logprob_change`` become means over tokens of good samples, and are left out where there
    are none; ``rollout_ratio_square`` becomes ``effective_sample_share`` = mean(w)^2 / mean(w^2), 1 where all w are
    equal.
    """
    result = dict(sums)
    for name in ("good_logprob", "good_logprob_change"):
        total = result.pop(name, 0.0)
        if result.get("good_fraction", 0.0) > 0:
            result[name] = total / result["good_fraction"]
    square = result.pop("rollout_ratio_square", 0.0)
    if square > 0:
        result["effective_sample_share"] = result["rollout_ratio"] ** 2 / square
    return result
