"""The two phases of a run, as the learner is told of them and as the plan counts them. No torch."""

from __future__ import annotations

from verl.learner.phase import Phase
from verl.trainer.config import TrainerConfig, WarmupConfig


def warmup_phase(config: WarmupConfig) -> Phase:
    """Steps on given traces, each batch in one step."""
    return Phase(config.optimizer, config.loss, batches=config.steps, all_weights=config.all_weights)


def reinforcement_phase(config: TrainerConfig, updates_per_batch: int) -> Phase:
    """The loop's steps, each batch in ``updates_per_batch``."""
    return Phase(
        config.optimizer,
        config.loss_in_force,
        batches=config.steps,
        updates_per_batch=updates_per_batch,
        advantage=config.advantage,
        keep_reference=config.kl_reward.coefficient > 0,
    )
