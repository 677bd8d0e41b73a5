"""The Search-R1 rewards: exact match, and its variant with format scores (arXiv 2503.09516, 2505.15117).

With V whether the format is valid and H whether a passage that was shown holds an accepted answer,

    | answer | V                                    | not V                       |
    | right  | 1                                    | 1 - structure_format_score  |
    | wrong  | structure_format_score + (H) retrieval_score | final_format_score  |
    | none   | 0 (a format without an answer is not valid)                        |

With all three scores 0 it is plain exact match.
"""

from __future__ import annotations

import re
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
    """Settings of the Search-R1 reward."""

    structure_format_score: float = 0.0
    """What a valid format is worth to a wrong answer, and an invalid one costs a right answer. 0 as in the first
    paper; 0.2 in the second."""
    final_format_score: float = 0.0
    """What a wrong answer earns in an invalid format. 0 as in the first paper; 0.1 in the second."""
    retrieval_score: float = 0.0
    """What a wrong answer in a valid format earns besides if a passage holds an accepted answer. 0 as published."""
    compat: Literal["none", "upstream"] = "none"
    """``upstream`` takes an episode without an answer for one with a wrong answer, as the published code does (it
    finds the example in its own prompt), and looks for characters, not words, in the passages."""

    def __post_init__(self) -> None:
        within(self, 0, 1, "structure_format_score", "final_format_score", "retrieval_score")


def build(config: Config, protocol: SearchProtocol) -> RewardFunction:
    """Make the reward function for trajectories of ``protocol``."""
    upstream = config.compat == "upstream"

    def reward(task: Task, trajectory: Trajectory) -> Score:
        parts = measure(task, protocol.read(trajectory))
        hit = (cover_match if upstream else word_match)(_passages(trajectory), task.golden_answers)
        parts["retrieval_hit"] = hit
        if not parts["answered"] and not upstream:
            return Score(0.0, parts)
        if parts["em"]:
            return Score(1.0 if parts["format_valid"] else 1 - config.structure_format_score, parts)
        if parts["format_valid"]:
            return Score(config.structure_format_score + config.retrieval_score * hit, parts)
        return Score(config.final_format_score, parts)

    return reward


def _passages(trajectory: Trajectory) -> str:
    """What searches showed, with the tags around it set apart from its words."""
    shown = (s for s in trajectory.segments if any(call.failure is None for call in s.calls))
    return re.sub(r"<[^<>]*>", " ", " ".join(segment.text for segment in shown))
