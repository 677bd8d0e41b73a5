"""An episode is shown as it is: in colour for the eye, never read as markup, never able to steer the terminal."""

from __future__ import annotations

from search_agent.transcript import in_colour, printable, transcript
from verl.trajectory import Trajectory


def styles(kind: str, text: str) -> dict[str, str]:
    shown = in_colour(kind, text)
    return {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}


def test_thought_search_and_answer_have_colours_of_their_own() -> None:
    found = styles("generated", "<think> a </think> <search> b </search>")
    assert len(set(found.values())) == 2
    assert set(found) == {"<think> a </think>", "<search> b </search>"}


def test_a_block_that_never_ends_is_coloured_to_the_end() -> None:
    assert set(styles("generated", "x <answer> cut")) == {"<answer> cut"}


def test_tags_in_passages_are_not_coloured() -> None:
    assert styles("observation", "<answer> data </answer>") == {}


def test_control_characters_are_left_out() -> None:
    assert printable("a\x1b[2Jb\rc\td\n") == "a[2Jbc\td\n"


def test_the_whole_episode_is_shown_as_it_is() -> None:
    trajectory = Trajectory(task_id="t", sample=0)
    trajectory.append_prompt([1], "[bold]q[/bold] ")
    trajectory.append_generated([2], "<answer> a </answer>", [0.0], [0], "stop")
    trajectory.outcome, trajectory.reward = "finished", 1.0
    shown = transcript(trajectory)
    assert shown.plain == "[bold]q[/bold] <answer> a </answer>\n[finished, reward 1.00]"
