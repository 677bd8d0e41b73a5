"""A score that says nothing about the model is told as one, in training, eval, ask and the report alike."""

from __future__ import annotations

import pytest

from search_agent.console.report import warning_lines
from search_agent.evaluation.describe import describe
from search_agent.evaluation.doubts import doubts
from search_agent.protocols.rare import open_book
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trajectory import ToolCall, ToolResult, Trajectory


def episode(
    calls: int = 2, found: int = 0, outcome: str = "finished", answered: float = 1.0, em: float = 0.0
) -> Trajectory:
    trajectory = Trajectory("a", 0)
    trajectory.append_prompt([1], "q")
    results = (ToolResult("d", 1.0, "t"),)
    for number in range(calls):
        trajectory.append_generated([2], "<search>x</search>", [0.0], [0], "stop")
        call = ToolCall("search", "x", results if number < found else (), 0.01)
        trajectory.append_observation([3], "nothing", (call,))
    trajectory.append_generated([4], "end", [0.0], [0], "stop")
    trajectory.outcome = outcome  # type: ignore[assignment]
    if outcome != "aborted":
        trajectory.reward, trajectory.reward_parts = em, {"em": em, "answered": answered}
    return trajectory


def told(*episodes: Trajectory) -> list[str]:
    return list(describe([Group(n, Task("a", "q", ("x",)), [one]) for n, one in enumerate(episodes)])["warnings"])


def test_a_corpus_that_never_shows_anything_is_named() -> None:
    [line] = told(episode(), episode())
    assert line.startswith("each of its 4 searches showed nothing: does the corpus match")
    assert told(episode(), episode(found=1)) == []


@pytest.mark.parametrize(
    ("episodes", "start"),
    [
        ([episode(calls=0)], "no episode searched"),
        ([episode(found=1, outcome="truncated")] * 2, "every episode was cut"),
        ([episode(found=1, answered=0.0)], "no episode gave an answer"),
        ([episode(found=1), episode(outcome="aborted")], "1 of 2 episodes were ended by outages"),
    ],
)
def test_whatever_else_makes_a_score_meaningless_is_told(episodes: list[Trajectory], start: str) -> None:
    [line] = told(*episodes)
    assert line.startswith(start)


def test_nobody_has_to_search_where_documents_stand_in_every_prompt() -> None:
    def warnings(*documents: str) -> list[str]:
        tasks = [Task("a", "q", ("x",), prompt=open_book(text, "q", "law")) for text in documents]
        return list(describe([Group(n, task, [episode(calls=0)]) for n, task in enumerate(tasks)])["warnings"])

    assert warnings("a document", "another") == []
    assert warnings("a document", "") == ["no episode searched: what is measured is what the model remembers"]


def test_a_table_without_any_episode_has_no_other_doubt() -> None:
    assert doubts({"n": 0, "aborted": 2}) == ["2 of 2 episodes were ended by outages and are not in the score"]


def test_the_report_says_of_each_column_what_is_wrong_with_it() -> None:
    results = {"before": {"greedy": {"warnings": ["w"]}, "sampled": {}}, "": {"greedy": {"warnings": ["v"]}}}
    assert list(warning_lines(results)) == ["warning: before greedy: w", "warning: greedy: v"]


def test_several_samples_of_a_task_are_one_observation_of_its_interval() -> None:
    tasks = [Group(n, Task(str(n), "q", ("x",)), [episode(found=1, em=float(n < 5))] * 8) for n in range(10)]
    result = describe(tasks)
    assert (result["em"], result["em_n"]) == (0.5, 80)
    low, high = result["em_interval"]
    assert high - low > 0.4, "of 10 tasks, not of 80 episodes"
    none = describe([Group(0, Task("0", "q", ("x",)), [episode(found=1)] * 8)])
    assert none["em_interval"][1] > 0.5, "one task without a hit says little"
