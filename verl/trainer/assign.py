"""ASSIGN: the rewards of a step's groups, less their KL, become samples: one of each text of a usable episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from verl.algorithms.advantages import group_advantages
from verl.algorithms.config import AdvantageConfig
from verl.algorithms.penalties import next_coefficient, next_price
from verl.cluster.learners import LearnerGroup
from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.rollout.groups import Group
from verl.trainer.config import TrainerConfig
from verl.trainer.gold import GoldScorer
from verl.trainer.shaping import (
    Episode,
    Shaping,
    costs_of,
    group_index,
    informative_groups,
    lengths_of,
    parts_of,
    penalties_of,
    reward_of,
    rewards_of,
    spent_of,
    turn_credit_of,
    usable_episodes,
)
from verl.trainer.state import LoopState
from verl.trajectory import FloatArray


@dataclass(frozen=True)
class Assigner:
    """ASSIGN in the loop; the coefficient of an adaptive KL and the price of a budget are part of the loop's state."""

    learners: LearnerGroup
    config: TrainerConfig
    shaping: Shaping
    temperature: float
    gold: GoldScorer | None = None

    async def samples(self, groups: Sequence[Group], state: LoopState) -> tuple[list[TrainingSample], dict[str, float]]:
        """See ``assign``; ``state`` gets the next coefficient and price."""
        config = self.config
        metrics: dict[str, float] = {}
        token_rewards: list[FloatArray] | None = None
        if config.kl_reward.coefficient > 0:
            token_rewards, metrics = await self._kl(groups, state)
        if self.gold is not None:
            scores = await self.gold.scores(groups)
            known = [score for score in scores if score is not None]
            metrics |= {"gold_logprob": sum(known) / len(known)} if known else {}
            if config.advantage.needs_gold:
                samples, weighed = self.gold.samples(groups, scores, config.advantage)
                return samples, {**metrics, **weighed}
        samples, assigned = assign(
            groups,
            config.advantage,
            drop_uniform=config.drops_uniform,
            shaping=self.shaping.at(state.budget_price),
            token_rewards=token_rewards,
        )
        return samples, {**metrics, **assigned, **self._spend(groups, state)}

    def _spend(self, groups: Sequence[Group], state: LoopState) -> dict[str, float]:
        """What the step's episodes spent, and at what price; ``state`` gets the next one."""
        budget, episodes = self.shaping.budget, usable_episodes(groups)
        if not budget.part or not episodes:
            return {}
        spent = float(spent_of(episodes, budget).mean())
        price = self.shaping.at(state.budget_price).price_in_force
        state.budget_price = next_price(price, spent, budget)
        return {"budget/spent": spent, "budget/price": price}

    async def _kl(self, groups: Sequence[Group], state: LoopState) -> tuple[list[FloatArray], dict[str, float]]:
        config, episodes = self.config.kl_reward, usable_episodes(groups)
        if any(episode.trajectory.texts().any() for episode in episodes):
            raise UserError(
                "trainer.kl_reward.coefficient: an episode that opens chats beside it (protocol.select=chat) is "
                "several texts, and has no KL in its reward: write 0, or protocol.select=turn"
            )
        samples = [TrainingSample.from_trajectory(episode.trajectory, 0.0) for episode in episodes]
        kl = await self.learners.reference_kl(samples, self.temperature, config.estimator)
        coefficient = config.coefficient if state.kl_coefficient is None else state.kl_coefficient
        tokens = sum(sample.num_policy_tokens for sample in samples)
        mean = sum(float(values.sum()) for values in kl) / max(1, tokens)
        state.kl_coefficient = next_coefficient(coefficient, mean, len(samples), config)
        return [-coefficient * values for values in kl], {"kl_reward": mean, "kl_reward_coefficient": coefficient}


def assign(
    groups: Sequence[Group],
    config: AdvantageConfig,
    *,
    drop_uniform: bool,
    shaping: Shaping | None = None,
    token_rewards: Sequence[FloatArray] | None = None,
) -> tuple[list[TrainingSample], dict[str, float]]:
    """Samples ordered by (group, sample), and what was left out and why.

    Aborted episodes are never trained on, nor are groups whose greedy baseline was aborted. With ``drop_uniform``
    neither are groups that have nothing to compare (``informative_groups``). With a critic the learner makes the
    advantages: the samples then carry the rewards of their tokens in their place. ``token_rewards``, what KL takes off,
    are added to those, or their sum to the reward of the episode, where no deviation divides it: ``[tokens]`` for each
    usable episode of all groups, in order. Raises ValueError if an episode has no reward.
    """
    shaping = shaping or Shaping()
    useful = informative_groups(groups, config, shaping)
    lacking = [config.needs_greedy and (g.greedy is None or g.greedy.reward is None) for g in groups]
    every = usable_episodes(groups)
    if token_rewards is not None:
        every = [replace(episode, token_rewards=own) for episode, own in zip(every, token_rewards, strict=True)]
    episodes = [e for e in every if not lacking[e.group] and (useful[e.group] or not drop_uniform)]
    metrics = {
        "uniform_groups": 1 - sum(useful) / len(groups),
        "aborted": float(sum(group.num_aborted for group in groups)),
        "trained_episodes": float(len(episodes)),
    }
    if config.needs_greedy:
        metrics["groups_without_baseline"] = float(sum(lacking))
    if not episodes:
        return [], metrics
    penalties, costs = penalties_of(episodes, shaping), costs_of(episodes, shaping)
    if shaping.overlong.buffer_tokens:
        metrics["overlong_penalty"] = float(penalties.mean())
    if config.needs_critic:
        rewards = (rewards_of(episodes) + penalties + costs).tolist()
        credit = [_rewards_of_tokens(episode, reward) for episode, reward in zip(episodes, rewards, strict=True)]
    else:
        credit = _sequence_credit(episodes, penalties, costs, groups, config)
        if shaping.turn_credit.coefficient:
            turns = turn_credit_of(episodes, shaping.turn_credit)
            credit = [whole + turn for whole, turn in zip(credit, turns, strict=True)]
    pairs = zip(episodes, credit, strict=True)
    samples = [TrainingSample.of_each_text(episode.trajectory, column) for episode, column in pairs]
    return [sample for texts in samples for sample in texts], metrics


def _sequence_credit(
    episodes: Sequence[Episode],
    penalties: torch.Tensor,
    costs: torch.Tensor,
    groups: Sequence[Group],
    config: AdvantageConfig,
) -> list[FloatArray]:
    """The advantage of each episode, on all its tokens. No deviation divides ``costs``: their size is the price."""
    own = [episode.token_rewards for episode in episodes]
    sums = [0.0 if row is None else float(row.sum(dtype=np.float64)) for row in own]
    added = costs + torch.tensor(sums, dtype=torch.float64)
    baselines = [groups[episode.group].greedy for episode in episodes]
    greedy = torch.tensor([0.0 if g is None else reward_of(g) for g in baselines], dtype=torch.float64)
    advantages = group_advantages(
        rewards_of(episodes) + penalties,
        group_index(episodes),
        config,
        lengths=lengths_of(episodes),
        greedy_rewards=greedy if config.needs_greedy else None,
        parts=parts_of(episodes, config),
        added=added + penalties if config.parts else added,  # parts know nothing of the penalty
    )
    pairs = zip(episodes, advantages.tolist(), strict=True)
    return [np.full(len(episode.trajectory), value, dtype=np.float32) for episode, value in pairs]


def _rewards_of_tokens(episode: Episode, reward: float) -> FloatArray:
    """``[tokens]``: the episode's reward on its last policy token, and what each token has of its own."""
    trajectory, own = episode.trajectory, episode.token_rewards
    tokens = np.zeros(len(trajectory), np.float32) if own is None else own.copy()
    places = np.flatnonzero(trajectory.policy_mask())
    tokens[places[-1:]] += reward
    return tokens
