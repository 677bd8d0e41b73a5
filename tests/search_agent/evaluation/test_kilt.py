"""KILT's measures: pages by title, and answers that count only where all their pages were found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.evaluation.describe import describe
from search_agent.evaluation.kilt import kilt, r_precision
from search_agent.rewards.text import normalise
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trajectory import ToolCall, ToolResult, Trajectory

PAGES = st.lists(st.sampled_from("abcdef"), max_size=8)
SETS = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3), min_size=1, max_size=3)


def played(pages: list[str], provenance: list[list[str]], em: float, outcome: str = "finished") -> Group:
    episode = Trajectory("t", 0, outcome=outcome, reward=em, reward_parts={"em": em, "f1": 0.5 + em / 2})  # type: ignore[arg-type]
    episode.append_prompt([1], "q")
    for page in pages:
        episode.append_generated([2], "s", [0.0], [0], "stop")
        found = (ToolResult(f"{page}-0", 1.0, page), ToolResult(f"{page}-1", 0.9, page))
        episode.append_observation([3], "text", [ToolCall("search", page, found)])
    return Group(0, Task("t", "q", ("a",), {"provenance": provenance}), [episode])


@pytest.mark.parametrize(
    ("pages", "provenance", "worth"),
    [
        (["Paris", "Rome"], [["Paris"]], 1.0),
        (["Rome", "Paris"], [["Paris"]], 0.0),  # only the first R pages count
        (["Rome", "Rome", "Paris"], [["Paris", "Rome"]], 1.0),  # passages of one page are one page
        (["Rome", "Oslo", "Paris"], [["Paris", "Rome"]], 0.5),
        (["Rome"], [["Paris", "Oslo"], ["Rome"]], 1.0),  # any one answer's pages are enough
        (["new_york  City"], [["New York City"]], 1.0),
        ([], [["Paris"]], 0.0),
    ],
)
def test_the_first_pages_are_compared_with_those_of_one_answer(
    pages: list[str], provenance: list[list[str]], worth: float
) -> None:
    assert r_precision(pages, provenance) == worth


@given(PAGES, SETS)
def test_it_is_a_share_that_is_whole_only_where_an_answers_pages_came_first(
    pages: list[str], provenance: list[list[str]]
) -> None:
    value, distinct = r_precision(pages, provenance), list(dict.fromkeys(pages))
    assert 0 <= value <= 1
    assert (value == 1) == any(set(gold) == set(distinct[: len(set(gold))]) for gold in provenance)


def test_no_page_at_all_is_no_zero() -> None:
    with pytest.raises(ValueError, match="no answer names the pages"):
        r_precision(["Paris"], [[]])


def test_an_answer_counts_only_where_its_pages_were_found() -> None:
    groups = [
        played(["Paris"], [["Paris"]], em=1.0),
        played(["Rome"], [["Paris"]], em=1.0),  # right, from nowhere
        played(["Paris"], [["Paris"]], em=0.0),
        played([], [["Paris"]], em=1.0, outcome="aborted"),
        played(["Paris"], [], em=1.0),  # it names no page, and is in no mean
    ]
    assert kilt(groups) == {"kilt/r_precision": 2 / 3, "kilt/em": 1 / 3, "kilt/f1": pytest.approx((1.0 + 0.5) / 3)}
    assert describe(groups)["kilt/em"] == 1 / 3
    assert not [key for key in describe(groups[-1:]) if key.startswith("kilt/")]


def test_normalisation_is_kilts() -> None:
    assert normalise("The  Obama's (a) Dog, an under_score!") == "obamas dog underscore"
