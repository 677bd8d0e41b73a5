"""Whether the answer is right by RARE's published extraction rules (arXiv 2503.23513).

Prediction and gold go through one extractor and must be equal as texts. An episode that says nothing, or runs into its
limit, is wrong: the denominator is every task that was played.
"""

from __future__ import annotations

from search_agent.protocols.base import SearchProtocol
from search_agent.protocols.rare import extract, is_right
from search_agent.rewards.parts import NoSettings as Config
from verl.data.tasks import Task
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import Trajectory

OPTIONS = frozenset("ABCDE")


def build(config: Config, protocol: SearchProtocol) -> RewardFunction:
    """Make the reward function."""

    def reward(task: Task, trajectory: Trajectory) -> Score:
        text = trajectory.turns[-1].text if trajectory.turns else ""
        right, (answer, found) = float(is_right(text, task.golden_answers)), extract(text)
        parts = {
            "em": right,
            "answered": float(found),
            "option": float(answer in OPTIONS),
            "format_valid": float(protocol.read(trajectory).format_valid),
        }
        return Score(right, parts)

    return reward


__all__ = ["Config", "build"]
