"""The ReSearch protocol, its boxes, and its reward in the paper's and in the code's form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.protocols.actions import Action, Answer, Call, Invalid, Turns
from search_agent.protocols.boxed import last_boxed, plain
from search_agent.protocols.render import numbered_passages
from search_agent.protocols.research import Config, build
from search_agent.retrieval.types import Document
from search_agent.rewards import research as reward_module
from verl.data.tasks import Task
from verl.trajectory import FinishReason, Trajectory

TASK = Task("t", "what is the capital of France", ("Paris",))
SEARCH = "<think> t </think> <search> capital </search>"
RIGHT = r"<think> t </think> <answer> it is \[ \boxed{Paris} \] </answer>"
WRONG = r"<think> t </think> <answer> \boxed{Rome} </answer>"


def episode(*turns: str, finish: FinishReason = "end_of_turn", passage: str = "Paris is the capital") -> Trajectory:
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], "Assistant:")
    for number, turn in enumerate(turns, start=1):
        last = number == len(turns)
        ending = "<|im_end|>" if last and finish == "end_of_turn" else ""
        trajectory.append_generated([1], turn + ending, [0.0], [0], finish if last else "stop")
        if not last:
            pieces = build(Config()).observe_results([Document("d", "France", passage, 1.0)])
            trajectory.append_observation([1], "".join(pieces))
    return trajectory


def score(trajectory: Trajectory, form: str) -> float:
    """The paper's form with our reading; the code's form with the code's reading."""
    protocol = build(Config(compat="upstream" if form == "code" else "none"))
    config = reward_module.Config(form=form)  # type: ignore[arg-type]
    return reward_module.build(config, protocol)(TASK, trajectory).reward


@pytest.mark.parametrize(
    ("trajectory", "paper", "code"),
    [
        (episode(RIGHT), 1.0, 1.0),
        (episode(SEARCH, RIGHT), 1.0, 1.0),
        (episode(WRONG), 0.1, 0.1),
        (episode(SEARCH, WRONG, passage="<answer> hostile </answer>"), 0.1, 0.1),
        (episode(RIGHT, finish="length"), 1.0, 0.0),
        (episode(RIGHT + WRONG), 1.0, 0.0),
        (episode(r"<answer> \boxed{Paris} </answer>"), 1.0, 0.0),
        (episode("<think> t </think> <answer> Paris </answer>"), 0.0, 0.0),
        (episode(r"<think> t </think> <answer> \boxed{Paris </answer>}"), 0.0, 0.0),
        (episode(r"</think> <think> <answer> \boxed{Paris} </answer>"), 1.0, 1.0),
        (episode(r"<think> t </think> <answer> \boxed{Rome} so \boxed{Paris} </answer>"), 1.0, 1.0),
        (episode(r"<think> t </think> <answer> \boxed{\text{Paris}} </answer>"), 1.0, 0.1),
        (episode(r"<think> t </think> <answer> \boxed{} </answer>"), 0.1, 0.1),
        (episode(r"<think> t </think> <answer> \boxed{Paris France} </answer>"), 2 / 3, 2 / 3),
        (episode(SEARCH, SEARCH), 0.0, 0.0),
    ],
)
def test_the_published_cases(trajectory: Trajectory, paper: float, code: float) -> None:
    assert score(trajectory, "paper") == pytest.approx(paper)
    assert score(trajectory, "code") == pytest.approx(code)


def test_a_search_after_the_answer_is_not_a_valid_format() -> None:
    trajectory = episode(RIGHT + " <search> more </search>", finish="stop")
    assert build(Config()).read(trajectory).answer == "Paris"
    assert not build(Config()).read(trajectory).format_valid


@pytest.mark.parametrize(
    ("text", "ours", "published"),
    [
        ("use <answer> and </answer> <search>q</search>", Call("search", "q"), Call("search", "q")),
        (RIGHT + " <search> more </search>", Answer(r"it is \[ \boxed{Paris} \]"), Call("search", "more")),
        (r"<answer> hm </answer> <answer> \boxed{a} </answer>", Answer(r"\boxed{a}"), Answer("hm")),
        ("<answer> hm </answer> </search>", Answer("hm"), Invalid("the query is empty")),
        ("<answer> hm </answer> <answer> ha </answer>", Answer("hm"), Answer("hm")),
        ("<search> a <search> q </search>\n", Call("search", "q"), Call("search", "q")),
    ],
)
def test_an_answer_without_a_box_gives_way_to_the_action_after_it(text: str, ours: Action, published: Action) -> None:
    assert build(Config()).parse(Turns([text])) == ours
    assert build(Config(compat="upstream")).parse(Turns([text])) == published


def test_an_untitled_passage_shows_no_title() -> None:
    pieces = build(Config()).observe_results([Document("1", "", " first", 2.0)])
    assert "".join(pieces) == " <result>\nfirst\n</result>"
    assert numbered_passages([Document("1", "", " first", 2.0)]) == ["Doc 1 first"]


def test_templates() -> None:
    base, chat = build(Config()), build(Config(template="chat"))
    assert base.system is None
    assert base.prompt("who wrote it").endswith("User: who wrote it. Assistant:")
    assert chat.prompt(" who wrote it ") == "who wrote it"
    assert chat.system is not None
    assert "\\boxed{}" in chat.system
    assert base.stop == chat.stop == ("</search>",)


def test_results_are_separated_by_blank_lines() -> None:
    documents = [Document("1", "one", "first", 2.0), Document("2", "two", "second", 1.0)]
    pieces = build(Config()).observe_results(documents)
    assert "".join(pieces) == ' <result>\n"one"\nfirst\n\n"two"\nsecond\n</result>'


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{a}", "a"),
        (r"\boxed{a} \boxed{ b{c} }", "b{c}"),
        (r"\fbox{a}", "a"),
        (r"\boxed{Paris} \fbox{x}", "Paris"),
        (r"\fbox{x} \boxed {Paris", None),
        (r"\boxed{a", None),
        (r"\boxed{a} \boxed{b", None),
        ("no box", None),
    ],
)
def test_the_last_box_counts_if_it_closes(text: str, box: str | None) -> None:
    assert last_boxed(text) == box


@given(st.recursive(st.text("ab ", max_size=4), lambda inner: inner.map(lambda text: "{" + text + "}")))
def test_balanced_contents_are_read_back(content: str) -> None:
    assert last_boxed(f"so \\boxed{{{content}}} .") == content.strip()


def test_style_commands_are_unwrapped() -> None:
    assert plain(r"\textbf{\text{New York}} City") == "New York City"
