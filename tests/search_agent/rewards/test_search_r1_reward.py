"""The Search-R1 reward, by its table."""

from __future__ import annotations

from typing import Any

import pytest

from search_agent.protocols import search_r1 as protocol_module
from search_agent.rewards import search_r1
from verl.data.tasks import Task
from verl.errors import UserError
from verl.trajectory import ToolCall, Trajectory

TASK = Task("t", "what is the capital of France?", ("Paris",))
PROTOCOL = protocol_module.build(protocol_module.Config())
SECOND_PAPER = {"structure_format_score": 0.2, "final_format_score": 0.1, "retrieval_score": 0.05}


def episode(last_turn: str, passage: str = "Paris is the capital") -> Trajectory:
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], PROTOCOL.prompt(TASK.question))
    trajectory.append_generated([1], "<think> t </think> <search> q </search>", [0.0], [0], "stop")
    observation = f"<information>{passage}</information>"
    trajectory.append_observation([1], observation, [ToolCall("search", "q")])
    trajectory.append_generated([1], last_turn, [0.0], [0], "stop")
    return trajectory


def reward(trajectory: Trajectory, **config: Any) -> float:
    return search_r1.build(search_r1.Config(**config), PROTOCOL)(TASK, trajectory).reward


@pytest.mark.parametrize(
    ("trajectory", "default", "upstream"),
    [
        (episode("<think> t </think> <answer> Paris </answer>"), 1.0, 1.0),
        (episode("<answer> Paris </answer>"), 0.8, 0.8),
        (episode("<think> t </think> <answer> Rome </answer>"), 0.25, 0.25),
        (episode("<think> t </think> <answer> Rome </answer>", "Rome"), 0.2, 0.2),
        (episode("<think> t </think> <answer> Rome </answer>", "Parisian"), 0.2, 0.25),
        (episode("<answer> Rome </answer>"), 0.1, 0.1),
        (episode("<think> t </think> <search> more </search>"), 0.0, 0.1),
    ],
)
def test_the_variant_with_format_scores(trajectory: Trajectory, default: float, upstream: float) -> None:
    assert reward(trajectory, **SECOND_PAPER) == pytest.approx(default)
    assert reward(trajectory, **SECOND_PAPER, compat="upstream") == pytest.approx(upstream)


def test_without_format_scores_it_is_exact_match() -> None:
    assert reward(episode("<answer> the Paris. </answer>")) == 1
    assert reward(episode("<think> t </think> <answer> Rome </answer>")) == 0


def test_the_hit_of_the_passages_is_reported() -> None:
    score = search_r1.build(search_r1.Config(), PROTOCOL)(TASK, episode("<answer> Rome </answer>"))
    assert score.parts["retrieval_hit"] == 1


def test_scores_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(UserError, match="retrieval_score=-1"):
        search_r1.Config(retrieval_score=-1)
