"""What an evaluation says of several data sets."""

from __future__ import annotations

import pytest

from search_agent.evaluation.describe import describe, evidence
from search_agent.protocols import autorefine
from tests.search_agent.viewer.support import ASHBY, search_episode
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trajectory import ToolCall, ToolResult, Trajectory


def group(number: int, source: str | None, em: float, f1: float = 0.5, outcome: str = "finished") -> Group:
    trajectory = Trajectory(task_id=str(number), sample=0)
    trajectory.append_prompt([1], "q")
    trajectory.append_generated([2], "a", [0.0], [0], "stop")
    trajectory.outcome = outcome  # type: ignore[assignment]
    trajectory.reward, trajectory.reward_parts = em, {"em": em, "f1": f1, "cover": 1.0}
    metadata = {"hops": 1} | ({"data_source": source} if source else {})
    return Group(number, Task(str(number), "q", ("a",), metadata), [trajectory])


def test_sets_count_alike_in_their_mean_however_large_they_are() -> None:
    found = describe([group(0, "nq", 1, 1), group(1, "nq", 1, 0.5), group(2, "nq", 0, 0), group(3, "popqa", 0)])
    assert (found["em"], found["em/nq"], found["em/popqa"]) == (0.5, pytest.approx(2 / 3), 0)
    assert found["em/mean"] == pytest.approx(1 / 3)
    assert (found["em/nq_n"], found["em/popqa_n"]) == (3, 1)
    assert found["em/nq_interval"][0] < 2 / 3 < found["em/nq_interval"][1]
    assert (found["f1/nq"], found["f1/mean"], found["cover/mean"]) == (0.5, 0.5, 1)


def test_episodes_that_infrastructure_ended_score_nothing() -> None:
    found = describe([group(0, "nq", 1), group(1, "nq", 0, outcome="aborted"), group(2, "popqa", 1)])
    assert (found["em/nq"], found["em/nq_n"], found["aborted"]) == (1, 1, 1)
    lost = describe([group(0, "nq", 1), group(1, "popqa", 0, outcome="aborted")])
    assert "em/popqa" not in lost
    assert lost["em/mean"] == 1


@pytest.mark.parametrize("source", [None, "nq"])
def test_one_data_set_is_not_told_apart(source: str | None) -> None:
    found = describe([group(0, source, 1), group(1, source, 0)])
    assert not [key for key in found if "/" in key and not key.startswith("evidence/")]
    assert found["em_one_hop"] == 0.5


def test_what_searches_brought_is_said_over_all_episodes() -> None:
    task = Task("q", "q", ("Ashby",), {"supporting_ids": ["a"]})
    found, failed = Trajectory("q", 0, reward=0.0), Trajectory("q", 1, outcome="aborted")
    for trajectory in (found, failed):
        trajectory.append_prompt([1], "q")
    for query in ("x", "X"):
        found.append_generated([2], "a", [0.0], [0], "stop")
        found.append_observation([3], "text", [ToolCall("search", query, (ToolResult("a", 1.0),))])
    found.outcome, found.reward_parts = "finished", {"em": 0.0, "f1": 0.0, "answered": 1.0}
    said = describe([Group(0, task, [found, failed])])
    assert {key: value for key, value in said.items() if key.startswith("evidence/")} == {
        "evidence/found": 0.5,
        "evidence/right_without": 0.0,
        "evidence/answered_without": 0.0,
        "evidence/wrong_with": 0.5,
        "evidence/duplicate_queries": 0.5,
        "evidence/empty_searches": 0.0,
        "evidence/refused_searches": 0.0,
        "evidence/hit_at_1": 0.5,
        "evidence/hit_at_2": 0.5,
        "evidence/found_at_1": 0.5,
        "evidence/found_at_2": 0.5,
        "evidence/new_at_1": 1.0,
        "evidence/new_at_2": 0.0,
        "evidence/failed": 0.5,
    }


def test_a_training_step_has_the_same_numbers_of_the_same_episodes_as_an_evaluation() -> None:
    groups = [group(0, "nq", 1), group(1, "nq", 0, outcome="aborted")]
    said = describe(groups)
    assert evidence(groups) == {key: value for key, value in said.items() if key.startswith("evidence/")} != {}


def test_how_long_searches_took_is_a_metric_of_training_and_no_part_of_a_result() -> None:
    groups = [Group(0, ASHBY, [search_episode(ASHBY, 0, answer="Ashby")])]
    assert evidence(groups)["search/latency_median_s"] == 0.004
    assert not [key for key in describe(groups) if key.startswith("search/")]


def test_what_refinements_keep_is_read_by_the_protocol() -> None:
    protocol = autorefine.build(autorefine.Config())
    groups = [Group(0, ASHBY, [search_episode(ASHBY, 0, answer="Ashby")])]
    assert "evidence/refinement_keeps_answer" not in evidence(groups)
    assert evidence(groups, protocol.read)["evidence/refinement_keeps_answer"] == 1.0
