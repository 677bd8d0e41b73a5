"""The named numbers that every reward function reports, so that runs with different rewards can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search_agent.protocols.base import Reading, SearchProtocol
from search_agent.rewards.text import cover_match, exact_match, f1, word_match
from verl.data.tasks import Task
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import Trajectory

Match = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class NoSettings:
    """There is nothing to set."""


def reward_by(part: str) -> Callable[[NoSettings, SearchProtocol], RewardFunction]:
    """``build`` of a reward that is one of the numbers below, and nothing else."""

    def build(config: NoSettings, protocol: SearchProtocol) -> RewardFunction:
        """Make the reward function for trajectories of ``protocol``."""

        def reward(task: Task, trajectory: Trajectory) -> Score:
            parts = measure(task, protocol.read(trajectory))
            return Score(parts[part], parts)

        return reward

    return build


def measure(task: Task, reading: Reading, refine_match: Match = word_match) -> dict[str, float]:
    """``em, f1, cover`` of the answer (0 without one), ``answered``, ``format_valid``, ``searches``, ``refine_hit``.

    Raises ValueError if the task has no accepted answer.
    """
    golds = task.golden_answers
    if not golds:
        raise ValueError(f"task {task.id}: no golden answer to score against")
    answer = reading.answer
    return {
        "em": exact_match(answer, golds) if answer is not None else 0.0,
        "f1": f1(answer, golds) if answer is not None else 0.0,
        "cover": cover_match(answer, golds) if answer is not None else 0.0,
        "answered": float(answer is not None),
        "format_valid": float(reading.format_valid),
        "searches": float(len(reading.searches)),
        "refine_hit": refine_match(" ".join(reading.refinements), golds),
    }
