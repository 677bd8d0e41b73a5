"""ASSIGN: the rewards of a step's groups become one training sample per usable episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from verl.algorithms.advantages import group_advantages
from verl.algorithms.config import AdvantageConfig, TurnCreditConfig
from verl.algorithms.control_config import OverlongConfig
from verl.algorithms.dapo import informative, overlong_penalty
from verl.algorithms.turn_credit import turn_advantages
from verl.data.samples import TrainingSample
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


@dataclass(frozen=True, slots=True)
class _Row:
    group: int
    trajectory: Trajectory
    token_rewards: FloatArray | None
    """What is added to the reward of each token, ``[tokens]``."""


def assign(
    groups: Sequence[Group],
    config: AdvantageConfig,
    *,
    drop_uniform: bool,
    version: int,
    shaping: Shaping | None = None,
    token_rewards: Sequence[FloatArray] | None = None,
) -> tuple[list[TrainingSample], dict[str, float]]:
    """Samples ordered by (group, sample), and what was left out and why.

    Aborted episodes are never trained on, nor are groups whose greedy baseline was aborted. With ``drop_uniform``
    neither are groups whose rewards are all equal. With a critic the learner makes the advantages: the samples then
    carry the rewards of their tokens in their place. ``token_rewards`` are added to those, or their sum to the reward
    of the episode: ``[tokens]`` for each usable episode of all groups, in order. Raises ValueError if an episode has no
    reward: a missing score must not look like zero.
    """
    shaping = shaping or Shaping()
    useful = informative_groups(groups)
    lacking = [config.needs_greedy and (g.greedy is None or g.greedy.reward is None) for g in groups]
    extra = iter(token_rewards if token_rewards is not None else [None] * sum(len(g.usable) for g in groups))
    every = [_Row(i, trajectory, next(extra)) for i, group in enumerate(groups) for trajectory in group.usable]
    rows = [row for row in every if not lacking[row.group] and (useful[row.group] or not drop_uniform)]
    metrics = {
        "uniform_groups": 1 - sum(useful) / len(groups),
        "aborted": float(sum(group.num_aborted for group in groups)),
        "trained_episodes": float(len(rows)),
    }
    if config.needs_greedy:
        metrics["groups_without_baseline"] = float(sum(lacking))
    if not rows:
        return [], metrics
    penalties = overlong_penalty(_lengths(rows), shaping.max_policy_tokens, shaping.overlong)
    if shaping.overlong.buffer_tokens:
        metrics["overlong_penalty"] = float(penalties.mean())
    rewards = torch.tensor([_reward(row.trajectory) for row in rows], dtype=torch.float64) + penalties
    if config.needs_critic:
        credit = [_rewards_of_tokens(row, float(reward)) for row, reward in zip(rows, rewards, strict=True)]
    else:
        credit = _sequence_credit(rows, rewards, groups, config)
        if shaping.turn_credit.coefficient:
            credit = [whole + turn for whole, turn in zip(credit, _turn_credit(rows, shaping.turn_credit), strict=True)]
    samples = [
        TrainingSample.from_trajectory(row.trajectory, column, group=row.group, version=version)
        for row, column in zip(rows, credit, strict=True)
    ]
    return samples, metrics


def informative_groups(groups: Sequence[Group]) -> list[bool]:
    """Whether the rewards of a group's usable episodes differ; False for one without two of them."""
    rows = [(index, _reward(trajectory)) for index, group in enumerate(groups) for trajectory in group.usable]
    index = torch.tensor([group for group, _ in rows], dtype=torch.int64)
    differs = informative(torch.tensor([reward for _, reward in rows], dtype=torch.float64), index)
    found = set(index[differs].tolist())
    return [group in found for group in range(len(groups))]


def _sequence_credit(
    rows: Sequence[_Row], rewards: torch.Tensor, groups: Sequence[Group], config: AdvantageConfig
) -> list[FloatArray]:
    """The advantage of each episode, on all its tokens."""
    sums = [0.0 if row.token_rewards is None else float(row.token_rewards.sum(dtype=np.float64)) for row in rows]
    greedy = [_reward(group.greedy) if group.greedy is not None else 0.0 for group in _groups_of(rows, groups)]
    advantages = group_advantages(
        rewards + torch.tensor(sums, dtype=torch.float64),
        torch.tensor([row.group for row in rows]),
        config,
        lengths=_lengths(rows),
        greedy_rewards=torch.tensor(greedy, dtype=torch.float64) if config.needs_greedy else None,
    )
    pairs = zip(rows, advantages.tolist(), strict=True)
    return [np.full(len(row.trajectory), value, dtype=np.float32) for row, value in pairs]


def _rewards_of_tokens(row: _Row, reward: float) -> FloatArray:
    """``[tokens]``: the episode's reward on its last policy token, and what each token has of its own."""
    tokens = np.zeros(len(row.trajectory), np.float32) if row.token_rewards is None else row.token_rewards.copy()
    places = np.flatnonzero(row.trajectory.policy_mask())
    tokens[places[-1:]] += reward
    return tokens


def _turn_credit(rows: Sequence[_Row], config: TurnCreditConfig) -> list[FloatArray]:
    """``[tokens]`` a row: the advantage of the turn that generated each token."""
    gains = [_gains(row.trajectory) for row in rows]
    turns = [(i, turn, rows[i].group, gain) for i, values in enumerate(gains) for turn, gain in enumerate(values)]
    sequence, turn, group = (torch.tensor([t[column] for t in turns], dtype=torch.int64) for column in range(3))
    values = torch.tensor([t[3] for t in turns], dtype=torch.float64)
    advantages = iter(turn_advantages(values, sequence, turn, group, config).tolist())
    columns = []
    for row in rows:
        parts = [
            np.full(len(segment), next(advantages) if segment.is_policy else 0.0, dtype=np.float32)
            for segment in row.trajectory.segments
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


def _groups_of(rows: Sequence[_Row], groups: Sequence[Group]) -> list[Group]:
    return [groups[row.group] for row in rows]


def _lengths(rows: Sequence[_Row]) -> torch.Tensor:
    return torch.tensor([row.trajectory.num_policy_tokens for row in rows])


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(f"task {trajectory.task_id}, sample {trajectory.sample}: the episode was never scored")
    return trajectory.reward
