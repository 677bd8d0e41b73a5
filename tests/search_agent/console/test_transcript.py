"""An episode is shown as it is: in colour for the eye, never read as markup, never able to steer the terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search_agent.console.transcript import in_colour, printable, transcript
from search_agent.protocols import search_r1
from search_agent.protocols.base import Span
from verl.trajectory import Trajectory

PROTOCOL = search_r1.build(search_r1.Config())


def styles(kind: str, text: str) -> dict[str, str]:
    shown = in_colour(kind, text, PROTOCOL)
    return {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}


def test_thought_search_and_answer_have_colours_of_their_own() -> None:
    found = styles("generated", "<think> a </think> <search> b </search>")
    assert len(set(found.values())) == 2
    assert set(found) == {"<think> a </think>", "<search> b </search>"}


def test_a_block_that_never_ends_is_coloured_to_the_end() -> None:
    assert set(styles("generated", "x <answer> cut")) == {"<answer> cut"}


def test_a_block_that_was_begun_for_the_policy_starts_with_its_text() -> None:
    text = "so </think> <search> b </search> </answer>"
    assert PROTOCOL.spans(text) == [Span("think", 0, 11), Span("search", 12, 32)]


def test_a_kind_that_nobody_has_a_colour_for_is_coloured() -> None:
    protocol = search_r1.build(search_r1.Config(open_passages=True))
    assert [str(span.style) for span in in_colour("generated", "<open> d1 </open>", protocol).spans] == ["yellow"]


@given(st.text() | st.lists(st.sampled_from(["<think>", "</think>", "<search>", "</search>", "x"])).map("".join))
def test_spans_of_any_text_are_apart_and_in_order(text: str) -> None:
    ends = [place for span in PROTOCOL.spans(text) for place in (span.begin, span.end)]
    assert ends == sorted(ends)
    assert all(0 <= place <= len(text) for place in ends)


def test_tags_in_passages_are_not_coloured() -> None:
    assert styles("observation", "<answer> data </answer>") == {}


def test_control_characters_are_left_out() -> None:
    assert printable("a\x1b[2Jb\rc\td\n") == "a[2Jbc\td\n"


def test_the_whole_episode_is_shown_as_it_is() -> None:
    trajectory = Trajectory(task_id="t", sample=0)
    trajectory.append_prompt([1], "[bold]q[/bold] ")
    trajectory.append_generated([2], "<answer> a </answer>", [0.0], [0], "stop")
    trajectory.outcome, trajectory.reward = "finished", 1.0
    shown = transcript(trajectory, PROTOCOL)
    assert shown.plain == "[bold]q[/bold] <answer> a </answer>\n[finished, reward 1.00]"
