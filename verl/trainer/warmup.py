"""The warm-up: batches of given traces to the learner, in an order that a resumed run knows from the step alone."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from verl.cluster.learners import LearnerGroup
from verl.data.order import EpochOrder
from verl.data.samples import TrainingSample
from verl.tracking import Tracker
from verl.trainer.config import WarmupConfig
from verl.trainer.phases import warmup_phase
from verl.trainer.state import LoopState


async def warm_up(
    config: WarmupConfig,
    traces: Sequence[TrainingSample],
    learners: LearnerGroup,
    tracker: Tracker,
    state: LoopState,
    *,
    seed: int,
    broken_off: Path | None,
    check: Callable[[], None],
    save: Callable[[], Awaitable[None]],
) -> None:
    """From ``state.step`` to the last step; ``broken_off`` is the checkpoint to go on from, if there is one.

    ``check`` raises if the run cannot go on; ``save`` makes the next checkpoint.
    """
    if broken_off is None:
        await learners.begin_phase(warmup_phase(config))
    else:
        await learners.load(broken_off)
    order, count = EpochOrder(traces, seed, "warmup"), config.sequences_per_step
    while state.step < config.steps:
        check()
        started = time.monotonic()
        batch = order.take(state.step * count, count)
        metrics = await learners.update(batch, 1.0)
        state.step += 1
        metrics["tokens_per_s"] = sum(map(len, batch)) / (time.monotonic() - started)
        tracker.log(state.step, {f"warmup/{name}": value for name, value in metrics.items()})
        if state.step % config.save_every_steps == 0:
            await save()
