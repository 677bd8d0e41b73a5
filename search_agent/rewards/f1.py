"""Token F1 of the answer, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from search_agent.protocols.base import SearchProtocol
from search_agent.rewards.parts import measure
from verl.data.tasks import Task
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import Trajectory


@dataclass(frozen=True)
class Config:
    """There is nothing to set."""


def build(config: Config, protocol: SearchProtocol) -> RewardFunction:
    """Make the reward function for trajectories of ``protocol``."""

    def reward(task: Task, trajectory: Trajectory) -> Score:
        parts = measure(task, protocol.read(trajectory))
        return Score(parts["f1"], parts)

    return reward
