"""What an episode is worth before those of a task are compared: its reward, shaped, and what its turns brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from verl.algorithms.advantages import differs
from verl.algorithms.config import AdvantageConfig, TurnCreditConfig
from verl.algorithms.control_config import BudgetConfig, OverlongConfig
from verl.algorithms.penalties import overlong_penalty
from verl.algorithms.turn_credit import turn_advantages
from verl.errors import UserError
from verl.rollout.groups import Group
from verl.trajectory import FloatArray, Trajectory


@dataclass(frozen=True)
class Shaping:
    """What changes rewards and credit besides the advantage; nothing unless told."""

    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    max_policy_tokens: int = 0
    """How many tokens an episode may generate: the limit that ``overlong`` speaks of."""
    turn_credit: TurnCreditConfig = field(default_factory=TurnCreditConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    price: float | None = None
    """Of what the budget counts, at this step; None before the first one, which has the budget's own."""

    def at(self, price: float | None) -> Shaping:
        """The same at the price that the loop's state holds."""
        return replace(self, price=price)

    @property
    def price_in_force(self) -> float:
        """Reward that each one spent costs."""
        return self.budget.price if self.price is None else self.price


@dataclass(frozen=True, slots=True)
class Episode:
    """A usable trajectory of the group at place ``group``."""

    group: int
    trajectory: Trajectory
    token_rewards: FloatArray | None = None
    """What KL adds to the reward of each token, ``[tokens]``."""


def usable_episodes(groups: Sequence[Group]) -> list[Episode]:
    """All of them in order."""
    return [Episode(place, trajectory) for place, group in enumerate(groups) for trajectory in group.usable]


def informative_groups(groups: Sequence[Group], config: AdvantageConfig, shaping: Shaping) -> list[bool]:
    """Whether the episodes of each group differ in something that is compared: the reward with its overlong penalty,
    a part of it that gdpo reads, what they spent where that has a price, or what turns brought where that is credited.
    What KL takes off does not count."""
    episodes = usable_episodes(groups)
    index = group_index(episodes)
    penalties = penalties_of(episodes, shaping)
    compared = list(parts_of(episodes, config).values()) or [rewards_of(episodes) + penalties]
    columns = (*compared, penalties, costs_of(episodes, shaping))
    found = {place for column in columns for place in index[differs(column, index)].tolist()}
    if shaping.turn_credit.coefficient:
        turns = turn_credit_of(episodes, shaping.turn_credit)
        found |= {episode.group for episode, column in zip(episodes, turns, strict=True) if column.any()}
    return [place in found for place in range(len(groups))]


def group_index(episodes: Sequence[Episode]) -> Tensor:
    """``[s]`` int64: the group of each episode."""
    return torch.tensor([episode.group for episode in episodes], dtype=torch.int64)


def rewards_of(episodes: Sequence[Episode]) -> Tensor:
    """``[s]`` float64. Raises ValueError if an episode was never scored: a missing score must not look like zero."""
    return torch.tensor([reward_of(episode.trajectory) for episode in episodes], dtype=torch.float64)


def reward_of(trajectory: Trajectory) -> float:
    """Its reward. Raises ValueError if it has none."""
    if trajectory.reward is None:
        raise ValueError(f"task {trajectory.task_id}, sample {trajectory.sample}: the episode was never scored")
    return trajectory.reward


def parts_of(episodes: Sequence[Episode], config: AdvantageConfig) -> dict[str, Tensor]:
    """The parts of the reward that ``config.parts`` names, each ``[s]`` float64. Raises UserError for one that is not
    among an episode's."""
    return {name: _part(episodes, name, f"trainer.advantage.parts.{name}") for name in config.parts}


def spent_of(episodes: Sequence[Episode], config: BudgetConfig) -> Tensor:
    """``[s]`` float64: what each spent of what the budget counts. Raises UserError if that is no part of its reward."""
    return _part(episodes, config.part, f"trainer.budget.part={config.part}")


def _part(episodes: Sequence[Episode], name: str, key: str) -> Tensor:
    for episode in episodes:
        parts = episode.trajectory.reward_parts
        if name not in parts:
            raise UserError(
                f"{key}: task {episode.trajectory.task_id} was given no such part; its reward has "
                f"{', '.join(parts) or 'none'}"
            )
    return torch.tensor([episode.trajectory.reward_parts[name] for episode in episodes], dtype=torch.float64)


def lengths_of(episodes: Sequence[Episode]) -> Tensor:
    """``[s]`` int64: policy tokens of each."""
    return torch.tensor([episode.trajectory.num_policy_tokens for episode in episodes], dtype=torch.int64)


def penalties_of(episodes: Sequence[Episode], shaping: Shaping) -> Tensor:
    """``[s]`` float64, 0 or less: what coming near the limit of tokens costs."""
    return overlong_penalty(lengths_of(episodes), shaping.max_policy_tokens, shaping.overlong).double()


def costs_of(episodes: Sequence[Episode], shaping: Shaping) -> Tensor:
    """``[s]`` float64: what spending more than the budget's limit costs each, and what spending less earns."""
    if not shaping.price_in_force:
        return torch.zeros(len(episodes), dtype=torch.float64)
    return -shaping.price_in_force * (spent_of(episodes, shaping.budget) - shaping.budget.limit)


def turn_credit_of(episodes: Sequence[Episode], config: TurnCreditConfig) -> list[FloatArray]:
    """``[tokens]`` an episode: the advantage of the turn that generated each token."""
    gains = [_gains(episode.trajectory) for episode in episodes]
    turns = [(i, turn, episodes[i].group, gain) for i, values in enumerate(gains) for turn, gain in enumerate(values)]
    sequence, turn, group = (torch.tensor([t[column] for t in turns], dtype=torch.int64) for column in range(3))
    values = torch.tensor([t[3] for t in turns], dtype=torch.float64)
    advantages = iter(turn_advantages(values, sequence, turn, group, config).tolist())
    columns = []
    for episode in episodes:
        parts = [
            np.full(len(segment), next(advantages) if segment.is_policy else 0.0, dtype=np.float32)
            for segment in episode.trajectory.segments
        ]
        columns.append(np.concatenate(parts))
    return columns


def _gains(trajectory: Trajectory) -> tuple[float, ...]:
    if trajectory.turn_gains is None:
        raise UserError(
            f"task {trajectory.task_id}: nobody can say what its turns brought (its row has no supporting_ids); write "
            "trainer.turn_credit.coefficient=0"
        )
    return trajectory.turn_gains
