"""The ReSearch reward: F1 of the boxed answer, or a little for the format (arXiv 2503.19470, section 2.3).

paper: F1 if F1 > 0;  0.1 if F1 = 0 and the format is valid;  else 0
code:  F1 if F1 > 0, else 0.1;  but 0 if the format is not valid or the policy did not end its last turn
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search_agent.protocols.base import SearchProtocol
from search_agent.rewards.parts import measure
from verl.data.tasks import Task
from verl.errors import within
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import Trajectory


@dataclass(frozen=True)
class Config:
    """Settings of the ReSearch reward."""

    form: Literal["paper", "code"] = "paper"
    """``code`` is the published program: stricter than the paper, it gives a right answer in a wrong format nothing."""
    format_score: float = 0.1
    """What the format earns where the answer earns nothing. 0.1 as published."""

    def __post_init__(self) -> None:
        within(self, 0, 1, "format_score")


def build(config: Config, protocol: SearchProtocol) -> RewardFunction:
    """Make the reward function for trajectories of ``protocol``."""

    def reward(task: Task, trajectory: Trajectory) -> Score:
        parts = measure(task, protocol.read(trajectory))
        complete = parts["format_valid"] and parts["answered"] and _ended(trajectory)
        if config.form == "code" and not complete:
            return Score(0.0, parts)
        return Score(parts["f1"] or config.format_score * parts["format_valid"], parts)

    return reward


def _ended(trajectory: Trajectory) -> bool:
    """Whether the policy ended its last turn itself."""
    turns = trajectory.generated
    return bool(turns) and turns[-1].finish_reason == "end_of_turn"
