"""The two phases of a run, as the learner is told of them and as the plan counts them. No torch."""

from __future__ import annotations

from verl.learner.config import LearnerConfig
from verl.learner.phase import Phase
from verl.trainer.config import TrainerConfig, WarmupConfig


def warmup_phase(config: WarmupConfig) -> Phase:
    """Steps on given traces, each batch in one step."""
    return Phase(config.optimizer, config.loss, batches=config.steps, all_weights=config.all_weights)


def reinforcement_phase(config: TrainerConfig, updates_per_batch: int) -> Phase:
    """The loop's steps, or one of them where each is a phase of its own; each batch in ``updates_per_batch``."""
    return Phase(
        config.optimizer,
        config.loss_in_force,
        batches=1 if config.fresh_optimizer else config.steps,
        updates_per_batch=updates_per_batch,
        advantage=config.advantage,
        keep_reference=config.kl_reward.coefficient > 0,
    )


def phases(warmup: WarmupConfig, trainer: TrainerConfig, learner: LearnerConfig) -> list[Phase]:
    """What the learner of a run goes through, as it will know it."""
    wanted = [warmup_phase(warmup)] if warmup.enabled else []
    wanted += [reinforcement_phase(trainer, learner.updates_per_batch)] if trainer.steps else []
    found: list[Phase] = []
    for phase in wanted:
        found.append(phase.after(found[-1] if found else None, lora=learner.lora is not None))
    return found
