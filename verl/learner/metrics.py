"""The numbers of one batch, from those of its optimizer steps; and how far trainer and rollout log-probs are apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_LAST = ("learning_rate", "skipped_steps")


def combine_steps(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of one batch: means over its steps, but the largest ``*_max``, sums of ``num_*``, the last rate."""
    combined: dict[str, float] = {}
    for name in steps[0]:
        values = [step[name] for step in steps]
        if name in _LAST:
            combined[name] = values[-1]
        elif name.endswith("_max"):
            combined[name] = max(values)
        elif name.startswith("num_"):
            combined[name] = sum(values)
        else:
            combined[name] = sum(values) / len(values)
    return combined


def logprob_gap(trainer: Tensor, rollout: Tensor, total: int) -> dict[str, Tensor]:
    """|trainer - rollout| over ``[n]`` policy tokens: a share of the mean over ``total`` tokens, and the largest."""
    gap = (trainer - rollout.to(trainer.dtype)).abs()
    # What the engine did not know is counted elsewhere, as ``rollout_unknown``.
    gap = gap.nan_to_num(0.0, 0.0)
    return {"logprob_diff_mean": gap.sum() / total, "logprob_diff_max": gap.amax() if len(gap) else gap.sum()}
