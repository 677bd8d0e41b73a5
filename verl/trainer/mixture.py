"""What a step's samples are trained on as: with warm-up traces among them, and in more than one pass, if asked for."""

from __future__ import annotations

from collections.abc import Sequence

from verl.data.order import EpochOrder
from verl.data.samples import TrainingSample
from verl.trainer.config import TrainerConfig


def mixed(
    samples: list[TrainingSample],
    traces: Sequence[TrainingSample],
    config: TrainerConfig,
    *,
    seed: int,
    step: int,
) -> list[TrainingSample]:
    """The step's samples as they are; with ``mixed_traces`` or ``passes``, shuffled with the traces, pass after pass.

    Each pass has every sample once and the same traces; steps take the traces in an order of their own. ``step`` counts
    from 0, and nothing else needs saving to resume.
    """
    count = config.mixed_traces
    if not samples or (not count and config.passes == 1):
        return samples
    added = EpochOrder(traces, seed, "mixed traces").take(step * count, count) if count else []
    order = EpochOrder([*samples, *added], seed, f"batch {step}")
    return order.take(0, config.passes * (len(samples) + len(added)))
