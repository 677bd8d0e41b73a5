"""A turn is credited with the evidence that its search showed first."""

from __future__ import annotations

from search_agent.rewards.evidence import evidence_gains
from verl.data.tasks import Task
from verl.trajectory import ToolCall, ToolResult, Trajectory


def episode(*found: tuple[str, ...]) -> Trajectory:
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], "q")
    for identifiers in found:
        trajectory.append_generated([2], "s", [-1.0], [0], "stop")
        results = tuple(ToolResult(identifier, 1.0) for identifier in identifiers)
        trajectory.append_observation([3], "o", [ToolCall("search", "query", results)])
    trajectory.append_generated([4], "a", [-1.0], [0], "stop")
    return trajectory


def task(*supporting: str) -> Task:
    return Task("t", "q", ("a",), {"supporting_ids": list(supporting)})


def test_a_passage_counts_once_in_the_turn_that_showed_it_first() -> None:
    gains = evidence_gains(task("p1", "p2"), episode(("p1", "p9"), ("p1",), ("p2", "p1")))
    assert gains == (0.5, 0.0, 0.5, 0.0)


def test_several_at_once_add_up_and_a_miss_is_zero() -> None:
    assert evidence_gains(task("p1", "p2"), episode(("p1", "p2"))) == (1.0, 0.0)
    assert evidence_gains(task("p1"), episode(("p7",), ())) == (0.0, 0.0, 0.0)


def test_a_task_that_names_no_evidence_has_no_gains() -> None:
    assert evidence_gains(Task("t", "q", ("a",)), episode(("p1",))) is None
