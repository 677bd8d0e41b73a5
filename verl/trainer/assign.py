"""ASSIGN: the rewards of a step's groups become one training sample per usable episode."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from verl.algorithms.advantages import group_advantages
from verl.algorithms.config import AdvantageConfig
from verl.data.samples import TrainingSample
from verl.rollout.groups import Group
from verl.trajectory import Trajectory


def assign(
    groups: Sequence[Group], config: AdvantageConfig, *, drop_uniform: bool, version: int
) -> tuple[list[TrainingSample], dict[str, float]]:
    """Samples ordered by (group, sample), and what was left out and why.

    Aborted episodes are never trained on. With ``drop_uniform`` neither are groups whose rewards are all equal. With a
    critic the learner makes the advantages: the samples then carry their reward in their place. Raises ValueError if
    an episode has no reward: a missing score must not look like zero.
    """
    rows: list[tuple[int, Trajectory]] = []
    uniform = 0
    for index, group in enumerate(groups):
        usable = group.usable
        is_uniform = len({_reward(trajectory) for trajectory in usable}) <= 1
        uniform += is_uniform
        if not (drop_uniform and is_uniform):
            rows += [(index, trajectory) for trajectory in usable]
    metrics = {
        "uniform_groups": uniform / len(groups),
        "aborted": float(sum(group.num_aborted for group in groups)),
        "trained_episodes": float(len(rows)),
    }
    if not rows:
        return [], metrics
    credit = torch.tensor([_reward(trajectory) for _, trajectory in rows], dtype=torch.float64)
    if not config.needs_critic:
        credit = group_advantages(
            credit,
            torch.tensor([index for index, _ in rows]),
            config,
            lengths=torch.tensor([trajectory.num_policy_tokens for _, trajectory in rows]),
        )
    samples = [
        TrainingSample.from_trajectory(trajectory, value, group=index, version=version)
        for (index, trajectory), value in zip(rows, credit.tolist(), strict=True)
    ]
    return samples, metrics


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(f"task {trajectory.task_id}, sample {trajectory.sample}: the episode was never scored")
    return trajectory.reward
