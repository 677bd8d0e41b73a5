"""Reading actions and blocks out of generated text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.protocols import autorefine, research
from search_agent.protocols.actions import Answer, Call, Invalid
from search_agent.protocols.base import block_names, contents, parse_action
from verl.trajectory import Trajectory

TAGS = ("think", "search", "answer")
fragments = st.lists(
    st.sampled_from(["<search>", "</search>", "<answer>", "</answer>", "<think>", "</think>", " ", "word", "\n"])
)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<think> t </think> <search> who wrote it </search>", Call("search", "who wrote it")),
        ("<search>q</search>\n\n<answer>late</answer>", Call("search", "q")),
        ("<answer> a </answer> <search> q </search>", Answer("a")),
        ("<answer></answer>", Answer("")),
        ("<search> first <search> second </search>", Call("search", "second")),
        ("<answer> I ask <search> q </search>", Call("search", "q")),
        ("<search>  </search>", Invalid("the query is empty")),
        ("q </search>", Invalid("</search> without <search>")),
        ("</answer> <answer> a </answer>", Invalid("</answer> without <answer>")),
        ("<search> never closed", Invalid("neither <search> nor <answer> is closed")),
        ("", Invalid("neither <search> nor <answer> is closed")),
    ],
)
def test_the_action_that_closes_first_is_the_turn(text: str, action: object) -> None:
    assert parse_action(text) == action


@given(fragments, fragments)
def test_nothing_after_the_first_closing_action_tag_changes_the_action(before: list[str], after: list[str]) -> None:
    turn = "".join(before) + "</search>"
    assert parse_action(turn + "".join(after)) == parse_action(turn)


@given(fragments)
def test_contents_are_those_of_each_closed_block(pieces: list[str]) -> None:
    text = "".join(pieces)
    for tag in TAGS:
        assert contents(text, tag) == [found.strip() for found in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)]


@pytest.mark.parametrize("piece", ["<think>", "</think>", " ", "\\boxed{", "<answer> ", "a"])
def test_a_turn_of_any_length_is_read(piece: str) -> None:
    """What is searched again for each of its pieces would take minutes here, while other episodes wait."""
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], "q")
    for text in (piece * 200_000, "<think>t</think><answer>x</answer>" + piece * 200_000 + "x"):
        trajectory.append_generated([1], text, [0.0], [0], "end_of_turn")
    for protocol in (autorefine.build(autorefine.Config()), research.build(research.Config())):
        assert not protocol.read(trajectory).format_valid


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert isinstance(parse_action(text), Call | Answer | Invalid)
    block_names(text, TAGS)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("<think>a</think><search>b</search>", ["think", "search"]),
        (" <think>a</think>\n\n<answer>b</answer>\n", ["think", "answer"]),
        ("", []),
        ("<think>a</think> so <answer>b</answer>", None),
        ("<think>a<answer>b</answer></think>", None),
        ("<think>a</think></answer>", None),
        ("<think>a<search>b</search>", None),
        ("<other>a</other>", None),
    ],
)
def test_blocks_are_closed_unnested_and_alone(text: str, names: list[str] | None) -> None:
    assert block_names(text, TAGS) == names


@given(st.lists(st.tuples(st.sampled_from(TAGS), st.text(alphabet="ab \n", max_size=8))))
def test_blocks_that_were_written_are_read_back(blocks: list[tuple[str, str]]) -> None:
    text = "\n".join(f"<{tag}>{body}</{tag}>" for tag, body in blocks)
    assert block_names(text, TAGS) == [tag for tag, _ in blocks]
    assert contents(text, "think") == [body.strip() for tag, body in blocks if tag == "think"]
