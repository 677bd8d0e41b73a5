"""RARE's protocol and reward: the published extraction rules, one extractor for both sides, a fixed denominator."""

from __future__ import annotations

import pytest

from search_agent.protocols import rare as protocol
from search_agent.protocols.actions import Answer, Invalid, Turns
from search_agent.protocols.rare import extract, open_book
from search_agent.rewards import rare
from verl.data.tasks import Task
from verl.rollout.interfaces import Score
from verl.trajectory import FinishReason, Trajectory

PROTOCOL = protocol.build(protocol.Config())
REWARD = rare.build(rare.Config(), PROTOCOL)
TASK = Task("1", "Which?", ("<answer>B</answer>",))


def score(text: str, reason: FinishReason = "end_of_turn", task: Task = TASK) -> Score:
    trajectory = Trajectory(task.id, 0)
    trajectory.append_prompt([1], "Which?")
    trajectory.append_generated([2], text, [0.0], [0], reason)
    return REWARD(task, trajectory)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>so</think>\n<answer>B</answer>", "B"),
        ("<answer> B </answer> <answer>C</answer>", "B"),
        ("<answer>B<answer>", "B"),
        ("<answer>B. aspirin</answer>", "B"),
        ("<answer>Answer: B because</answer>", "B"),
        ("B, I think", "B"),
        ("thinking. Answer:\nB", "B"),
        ("<answer><B></answer>", "B"),
        ("B", "B"),
        ("no idea", "no idea"),
        ("<answer>aspirin</answer>", "aspirin"),
    ],
)
def test_rules_are_applied_one_after_another(text: str, answer: str) -> None:
    assert extract(text)[0] == answer


def test_an_episode_without_an_answer_is_wrong_and_counts() -> None:
    assert score("<think> on and on", "length").parts == {"em": 0, "answered": 0, "option": 0, "format_valid": 0}
    assert score("").reward == 0
    assert isinstance(PROTOCOL.parse(Turns(["<think> on and on"])), Invalid)


def test_the_token_that_ends_the_turn_is_no_part_of_the_answer() -> None:
    for end in ("", "<|im_end|>", "</s>", "<|eot_id|>"):
        assert score(f"B{end}").reward == 1
        assert score(f"<think>b</think>\n<answer>B</answer>{end}").parts["format_valid"] == 1
    assert PROTOCOL.parse(Turns(["<think>b</think> <answer>B</answer>"])) == Answer("B")


def test_a_letter_outside_the_options_is_said_to_be_one() -> None:
    assert score("<answer>Z</answer>").parts["option"] == 0
    assert score("<answer>C</answer>").parts["option"] == 1
    assert score("<answer>b</answer>").reward == 0, "letters are compared as they stand"


def test_a_prompt_speaks_of_documents_only_where_there_are_some() -> None:
    assert "Documents" not in open_book("", "Which?\nA. one\nB. two", "medicine")
    prompt = open_book("Aspirin helps.", "Which?", "medicine")
    assert prompt.index("Aspirin") < prompt.index("Which?")
    assert "<answer>X</answer>" in prompt
    assert PROTOCOL.prompt("Which?") == open_book("", "Which?", "")
