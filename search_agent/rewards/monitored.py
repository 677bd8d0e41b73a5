"""A reward with metrics of one's own beside it: they are recorded and drawn like its parts, and earn nothing.

    reward:
      plugin: search_agent.rewards.monitored
      reward: {plugin: search_agent.rewards.f1}
      monitors: [{plugin: my_package.my_monitor}]

A monitor is a module with ``Config`` and ``build(config, protocol)``, which makes a function of a task and a trajectory
that returns numbers by name. It runs in the pool, as a reward of one's own does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from search_agent.protocols.base import SearchProtocol
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import Trajectory

Monitor = Callable[[Task, Trajectory], Mapping[str, float]]


@dataclass(frozen=True)
class Config:
    """What is earned, and what is only looked at."""

    runs_foreign_code: ClassVar[bool] = True

    reward: Plugin
    """The reward."""
    monitors: tuple[Plugin, ...]
    """Modules that measure something besides."""


def build(config: Config, protocol: SearchProtocol) -> RewardFunction:
    """Make the reward function."""
    reward: RewardFunction = config.reward.build(protocol)
    monitors: list[tuple[str, Monitor]] = [(one.module, one.build(protocol)) for one in config.monitors]

    def watched(task: Task, trajectory: Trajectory) -> Score:
        score = reward(task, trajectory)
        parts = dict(score.parts)
        for module, monitor in monitors:
            measured = monitor(task, trajectory)
            if taken := sorted(parts.keys() & measured.keys()):
                raise ValueError(f"monitor {module} measures {', '.join(taken)}, which has been measured: rename it")
            parts |= measured
        return replace(score, parts=parts)

    return watched
