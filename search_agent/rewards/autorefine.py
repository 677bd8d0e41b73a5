"""The AutoRefine reward (arXiv 2505.11277): what the answer earns, or a little for a refinement that holds an answer.

With s the answer's score and h whether the refinements hold an accepted answer,

    R = s                                                if there is an answer and s > 0
        format_score * format_valid + refine_score * h   if there is an answer and s = 0
        0                                                if there is no answer
    R += refine_bonus * h                                always (0 as published: the non-linear form)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search_agent.protocols.base import SearchProtocol
from search_agent.rewards.parts import measure
from search_agent.rewards.text import cover_match, word_match
from verl.data.tasks import Task
from verl.errors import within
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import Trajectory


@dataclass(frozen=True)
class Config:
    """Settings of the AutoRefine reward."""

    answer_score: Literal["em", "f1", "cover"] = "f1"
    """How the answer is scored; ``f1`` as the published training run does."""
    refine_score: float = 0.1
    """What a wrong answer earns if the refinements hold an accepted one. 0.1 as published."""
    refine_bonus: float = 0.0
    """What such refinements add to every trajectory: the linear form. 0 is off, as published."""
    format_score: float = 0.0
    """What a wrong answer in the right format earns. 0 as published."""
    compat: Literal["none", "upstream"] = "none"
    """``none`` looks for whole words in the refinements and leaves out yes and no; ``upstream`` looks for characters:
    it finds "no" in "known"."""

    def __post_init__(self) -> None:
        within(self, 0, 1, "refine_score", "refine_bonus", "format_score")


def build(config: Config, protocol: SearchProtocol) -> RewardFunction:
    """Make the reward function for trajectories of ``protocol``."""
    refine_match = cover_match if config.compat == "upstream" else word_match

    def reward(task: Task, trajectory: Trajectory) -> Score:
        parts = measure(task, protocol.read(trajectory), refine_match)
        bonus = config.refine_bonus * parts["refine_hit"]
        if not parts["answered"]:
            return Score(bonus, parts)
        fallback = config.format_score * parts["format_valid"] + config.refine_score * parts["refine_hit"]
        return Score((parts[config.answer_score] or fallback) + bonus, parts)

    return reward
