"""The rewards of AutoRefine and of plain matching, by their formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search_agent.protocols import autorefine as protocol_module
from search_agent.rewards import autorefine, cover, em, f1
from verl.data.tasks import Task
from verl.errors import UserError
from verl.trajectory import ToolCall, ToolResult, Trajectory

TASK = Task("t", "who?", ("mara ellwood",))
PROTOCOL = protocol_module.build(protocol_module.Config())
PARTS = {"em", "f1", "cover", "format_valid", "searches", "refine_hit", "answered"}


def episode(answer: str | None, refinement: str = "nothing") -> Trajectory:
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], PROTOCOL.prompt("who?"))
    trajectory.append_generated([1], "<think> t </think> <search> q </search>", [0.0], [0], "stop")
    trajectory.append_observation([1], "<documents> <refine> mara ellwood </refine> mara ellwood </documents>")
    closing = f" <answer> {answer} </answer>" if answer is not None else ""
    trajectory.append_generated([1], f"<refine> {refinement} </refine>{closing}", [0.0], [0], "stop")
    return trajectory


def reward(trajectory: Trajectory, task: Task = TASK, **config: Any) -> float:
    return autorefine.build(autorefine.Config(**config), PROTOCOL)(task, trajectory).reward


@pytest.mark.parametrize(
    ("answer", "refinement", "expected"),
    [
        ("mara ellwood", "nothing", 1.0),
        ("mara", "nothing", 2 / 3),
        ("mara", "mara ellwood", 2 / 3),
        ("john", "it was mara ellwood", 0.1),
        ("john", "nothing", 0.0),
        (None, "mara ellwood", 0.0),
    ],
)
def test_the_published_formula(answer: str | None, refinement: str, expected: float) -> None:
    assert reward(episode(answer, refinement)) == pytest.approx(expected)


def test_the_linear_form_adds_the_bonus_to_every_trajectory() -> None:
    linear: dict[str, Any] = {"refine_score": 0.0, "refine_bonus": 0.1}
    assert reward(episode("mara ellwood", "mara ellwood"), **linear) == pytest.approx(1.1)
    assert reward(episode(None, "mara ellwood"), **linear) == pytest.approx(0.1)
    assert reward(episode("john"), **linear) == 0


def test_a_search_that_found_nothing_leaves_nothing_to_refine() -> None:
    trajectory = episode("wrong", "it was mara ellwood")
    call = ToolCall("search", "q", (ToolResult("d", 1.0, "t"),))
    paid = [(replace(call, results=()), 0.0), (replace(call, failure="no"), 0.0), (call, 0.1)]
    for record, expected in paid:
        trajectory.segments[2] = replace(trajectory.segments[2], calls=(record,))
        assert reward(trajectory) == pytest.approx(expected)


@pytest.mark.parametrize("searched", [False, True])
def test_a_refinement_counts_only_after_a_search_was_answered(searched: bool) -> None:
    """Guesses listed before any search, or after one that was not carried out, refine nothing; published code pays."""
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], "who?")
    action = "<search> q </search>" if searched else "<search> </search>"
    guess = "<refine> john, mara ellwood </refine>"
    trajectory.append_generated([1], f"<think> t </think> {guess} {action}", [0.0], [0], "stop")
    trajectory.append_observation([1], "<documents> </documents>" if searched else "not a valid action")
    tail = "<answer> wrong </answer>" if searched else f"{guess} <answer> wrong </answer>"
    trajectory.append_generated([1], tail, [0.0], [0], "stop")
    assert reward(trajectory) == 0
    upstream = protocol_module.build(protocol_module.Config(compat="upstream"))
    assert autorefine.build(autorefine.Config(), upstream)(TASK, trajectory).reward == pytest.approx(0.1)


def test_styles_of_the_answer_score_and_the_format_score() -> None:
    assert reward(episode("mara"), answer_score="em") == 0
    assert reward(episode("it is mara ellwood ."), answer_score="cover") == 1
    assert reward(episode("john"), format_score=0.05) == pytest.approx(0.05)


def test_upstream_gives_a_yes_no_question_away() -> None:
    """The published refine hit is gameable: "no" stands in "known" and "1" in "11"; whole words are the default."""
    for gold, text in [("no", "the author is unknown"), ("1", "in the year 2011"), ("art", "the start")]:
        task = Task("t", "who?", (gold,))
        assert reward(episode("wrong", text), task, compat="upstream") == pytest.approx(0.1)
        assert reward(episode("wrong", text), task) == 0


@pytest.mark.parametrize("module", [autorefine, em, f1])
def test_every_reward_reports_the_same_parts(module: Any) -> None:
    score = module.build(module.Config(), PROTOCOL)(TASK, episode("mara", "mara ellwood"))
    assert set(score.parts) == PARTS
    assert score.parts["searches"] == score.parts["answered"] == score.parts["format_valid"] == 1
    assert score.parts["refine_hit"] == 1
    assert (score.parts["em"], score.parts["f1"], score.parts["cover"]) == (0, pytest.approx(2 / 3), 0)


def test_plain_rewards_are_the_measure() -> None:
    assert em.build(em.Config(), PROTOCOL)(TASK, episode("The Mara Ellwood.")).reward == 1
    assert f1.build(f1.Config(), PROTOCOL)(TASK, episode("mara")).reward == pytest.approx(2 / 3)
    assert cover.build(cover.Config(), PROTOCOL)(TASK, episode("it is Mara Ellwood's")).reward == 1


def test_a_task_without_golden_answer_names_itself() -> None:
    with pytest.raises(ValueError, match="task t: no golden answer"):
        reward(episode("mara"), Task("t", "who?", ()))


def test_scores_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(UserError, match="refine_score=2"):
        autorefine.Config(refine_score=2)
