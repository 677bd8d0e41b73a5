"""What searches brought and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.evaluation import diagnostics
from search_agent.evaluation.diagnostics import Diagnosis, accuracy_by_searches, summarise
from search_agent.protocols.base import Reading
from verl.data.tasks import Task
from verl.trajectory import ToolCall, ToolResult, Trajectory

TASK = Task("q", "Where was the author born?", ("Ashby",), {"supporting_ids": ["a", "b"]})


def episode(
    *searches: tuple[str, list[str], str], em: float = 0.0, aborted: bool = False, tool: str = "search", **call: Any
) -> Trajectory:
    """An episode that asked each (query, ids that came, text that was shown)."""
    trajectory = Trajectory("q", 0, outcome="aborted" if aborted else "finished")
    trajectory.append_prompt([1], "prompt")
    for query, ids, text in searches:
        trajectory.append_generated([2], f"<search>{query}</search>", [0.0], [0], "stop")
        results = tuple(ToolResult(identifier, 1.0) for identifier in ids)
        trajectory.append_observation([3], text, [ToolCall(tool, query, results, **call)])
    trajectory.append_generated([4], "<answer>Ashby</answer>", [0.0], [0], "stop")
    trajectory.reward_parts = {"em": em}
    return trajectory


def diagnose(task: Task, trajectory: Trajectory, refinements: Sequence[str] = ()) -> Diagnosis:
    answer = None if trajectory.outcome == "aborted" else "Ashby"
    reading = Reading(answer, (), (), tuple(refinements), True)
    return diagnostics.diagnose(task, trajectory, reading, right=trajectory.reward_parts["em"] == 1)


def test_each_search_counts_what_it_was_the_first_to_show() -> None:
    diagnosis = diagnose(TASK, episode(("x", ["a", "c"], ""), ("X !", ["a"], ""), ("z", ["b"], ""), em=1))
    assert [search.gain for search in diagnosis.searches] == [0.5, 0.0, 0.5]
    assert [search.duplicate for search in diagnosis.searches] == [False, True, False]
    assert diagnosis.found
    assert diagnosis.verdict == "right with evidence"


@pytest.mark.parametrize(
    ("ids", "em", "aborted", "verdict"),
    [
        (["a", "b"], 0, False, "wrong with evidence"),
        (["a"], 1, False, "right without evidence"),
        ([], 0, False, "wrong without evidence"),
        (["a", "b"], 0, True, "aborted"),
    ],
)
def test_the_verdict_sets_evidence_beside_the_answer(ids: list[str], em: float, aborted: bool, verdict: str) -> None:
    assert diagnose(TASK, episode(("x", ids, ""), em=em, aborted=aborted)).verdict == verdict


def test_without_named_evidence_a_passage_with_the_answer_stands_for_it() -> None:
    task = Task("q", "?", ("Ashby",))
    twice = diagnose(task, episode(("x", ["a"], "born in Ashby."), ("y", ["b"], "Ashby again")))
    assert [search.gain for search in twice.searches] == [1.0, 0.0]
    assert diagnose(task, episode(("x", ["a"], "born in Ashbyton"))).evidence == 0


def test_what_another_tool_shows_is_evidence_and_no_search() -> None:
    diagnosis = diagnose(TASK, episode(("a", ["a", "b"], ""), tool="open"))
    assert (diagnosis.evidence, diagnosis.searches) == (1.0, ())


@pytest.mark.parametrize("gold", ["yes", "No", "the", ""])
def test_an_answer_that_any_text_holds_is_not_judged(gold: str) -> None:
    diagnosis = diagnose(Task("q", "?", (gold,)), episode(("x", ["a"], "yes no the")))
    assert (diagnosis.evidence, diagnosis.verdict) == (None, "unjudged")
    assert "evidence_found" not in summarise([diagnosis])


def test_whether_a_refinement_keeps_the_answer_is_asked_only_where_one_was_shown() -> None:
    shown, not_shown = episode(("x", ["a"], "Ashby")), episode(("x", ["a"], "nothing"))
    assert diagnose(TASK, shown, ["born in ashby"]).kept is True
    assert diagnose(TASK, shown, ["born somewhere"]).kept is False
    assert diagnose(TASK, shown).kept is None
    assert diagnose(TASK, not_shown, ["born in ashby"]).kept is None


def test_a_summary_has_its_denominators() -> None:
    said = summarise(
        [
            diagnose(TASK, episode(("x", ["a"], "Ashby"), ("y", ["b"], ""), em=1, latency_s=0.2), ["Ashby"]),
            diagnose(TASK, episode(("x", ["a"], ""), ("x", [], ""), em=1, latency_s=0.1)),
            diagnose(TASK, episode(("x", ["a", "b"], ""), latency_s=9.0, cached=True)),
            diagnose(TASK, episode(("x", [], ""), aborted=True, failure="too long")),
        ]
    )
    assert (said["n"], said["aborted"], said["judged"], said["searches"]) == (4, 1, 4, 6 / 4)
    assert said["duplicate_queries"] == said["refused_searches"] == said["cached_searches"] == 1 / 6
    assert said["hit_at"] == [3 / 4, 3 / 4]
    assert said["found_at"] == [1 / 4, 2 / 4]
    assert said["new_at"] == [2 / 4, 0.5 / 2]
    assert said["evidence_found"] == 2 / 4
    assert said["right_without_evidence"] == said["wrong_with_evidence"] == said["answered_without_evidence"] == 1 / 4
    assert (said["refinement_keeps_answer"], said["refinement_keeps_answer_n"]) == (1.0, 1)
    assert said["latency_s"] == {"median": 0.2, "p95": 0.2}  # neither cached nor refused
    assert summarise([]) == {}


def test_accuracy_is_told_for_each_number_of_searches() -> None:
    one, two = ("x", ["a"], ""), ("y", ["b"], "")
    rows = accuracy_by_searches(
        [diagnose(TASK, trajectory) for trajectory in (episode(one, em=1), episode(one), episode(one, two, em=1))]
    )
    assert [(row["searches"], row["n"], row["right"], row["within"]) for row in rows] == [
        (1, 2, 0.5, pytest.approx(1 / 3)),
        (2, 1, 1.0, pytest.approx(2 / 3)),
    ]


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcd"), max_size=3), st.booleans()), max_size=6))
def test_gains_add_up_to_the_evidence_and_curves_never_fall(found: list[tuple[list[str], bool]]) -> None:
    diagnoses: list[Diagnosis] = [
        diagnose(TASK, episode(*[("x", ids, "")] * 2, em=float(right))) for ids, right in found
    ]
    for diagnosis, (ids, _) in zip(diagnoses, found, strict=True):
        assert diagnosis.evidence == len({"a", "b"} & set(ids)) / 2
    said = summarise(diagnoses)
    for name in ("hit_at", "found_at"):
        assert said.get(name, []) == sorted(said.get(name, []))
    within = [row["within"] for row in accuracy_by_searches(diagnoses)]
    assert within == sorted(within)
