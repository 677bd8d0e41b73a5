"""What a step trains on: KL to the reference taken off the rewards, then ASSIGN."""

from __future__ import annotations

from collections.abc import Sequence

from verl.algorithms.kl_reward import next_coefficient
from verl.cluster.groups import LearnerGroup
from verl.data.samples import TrainingSample
from verl.rollout.groups import Group
from verl.trainer.assign import Shaping, assign
from verl.trainer.config import TrainerConfig
from verl.trainer.state import LoopState
from verl.trajectory import FloatArray


class Credit:
    """Turns groups into samples; the coefficient of an adaptive KL is part of the loop's state."""

    def __init__(
        self, learners: LearnerGroup, config: TrainerConfig, *, temperature: float, max_policy_tokens: int
    ) -> None:
        self._learners = learners
        self._config = config
        self._temperature = temperature
        self._shaping = Shaping(config.overlong, max_policy_tokens, config.turn_credit)

    async def samples(
        self, groups: Sequence[Group], version: int, state: LoopState
    ) -> tuple[list[TrainingSample], dict[str, float]]:
        """See ``assign``; ``state`` gets the next coefficient."""
        config = self._config
        metrics: dict[str, float] = {}
        token_rewards: list[FloatArray] | None = None
        if config.kl_reward.coefficient > 0:
            token_rewards, metrics = await self._kl(groups, version, state)
        samples, assigned = assign(
            groups,
            config.advantage,
            drop_uniform=config.drops_uniform,
            version=version,
            shaping=self._shaping,
            token_rewards=token_rewards,
        )
        return samples, {**metrics, **assigned}

    async def _kl(
        self, groups: Sequence[Group], version: int, state: LoopState
    ) -> tuple[list[FloatArray], dict[str, float]]:
        config = self._config.kl_reward
        usable = [trajectory for group in groups for trajectory in group.usable]
        samples = [TrainingSample.from_trajectory(trajectory, 0.0, version=version) for trajectory in usable]
        kl = await self._learners.reference_kl(samples, self._temperature, config.estimator)
        coefficient = config.coefficient if state.kl_coefficient is None else state.kl_coefficient
        tokens = sum(sample.num_policy_tokens for sample in samples)
        mean = sum(float(values.sum()) for values in kl) / max(1, tokens)
        state.kl_coefficient = next_coefficient(coefficient, mean, len(samples), config)
        return [-coefficient * values for values in kl], {"kl_reward": mean, "kl_reward_coefficient": coefficient}
