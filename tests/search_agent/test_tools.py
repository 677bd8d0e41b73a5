"""Tools by name: what a call finds is shown, what it refuses is the policy's fault, and an outage aborts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.protocols import search_r1
from search_agent.protocols.actions import Action, Answer, Call, Say, Turns
from search_agent.retrieval.types import SearchResult
from search_agent.rewards.search_r1 import Config as RewardConfig
from search_agent.rewards.search_r1 import build as build_reward
from search_agent.tools.base import BadRequest, Caller, Tool
from tests.search_agent.test_environment import HOSTILE, TASK, Shelf, play
from verl.config.build import Plugin, build
from verl.errors import InfrastructureError, UserError

OPENING = search_r1.build(search_r1.Config(instruction="short", open_passages=True))
THINK = "<think> t </think> "
EXCERPTS = {"search": {"plugin": "search_agent.tools.search", "excerpt_words": 3}}
OPEN = {"open": {"plugin": "search_agent.tools.open"}}
LONG = "the first book was written by mara ."


def tools(data: dict[str, dict[str, Any]]) -> dict[str, Plugin]:
    return {name: build_plugin(item) for name, item in data.items()}


def build_plugin(data: dict[str, Any]) -> Plugin:
    from search_agent.environment import Config

    return build(Config, {"tools": {"x": data}}).tools["x"]


class Scripted(search_r1.SearchR1):
    """Search-R1's texts around actions that a test chooses from what was written."""

    def __init__(self, act: Callable[[Turns], Action], words: str | None = None) -> None:
        super().__init__(search_r1.Config(instruction="short"))
        self.act, self.words = act, words

    def parse(self, turns: Turns) -> Action:
        return self.act(turns)

    def last_call(self, question: str) -> str | None:
        return None if self.words is None else self.words + question


def test_open_shows_a_passage_whole_that_a_search_showed_in_part(tokenizer: Any) -> None:
    turns = [THINK + "<search> q </search>", THINK + "<open> d0 </open>", THINK + "<answer> mara </answer>"]
    trajectory, script, _ = play(tokenizer, turns, Shelf([LONG]), protocol=OPENING, tools=tools(EXCERPTS | OPEN))
    excerpt, whole = (s.text for s in trajectory.segments if s.kind == "observation")
    assert "the first book ... (id: d0)" in excerpt
    assert "mara" not in excerpt
    assert LONG in whole
    assert [(call.tool, call.request, call.failure) for call in trajectory.calls] == [
        ("search", "q", None),
        ("open", "d0", None),
    ]
    assert script.asked[0].stop == ("</search>", "</open>", "</answer>")
    reading = OPENING.read(trajectory)
    assert reading.format_valid
    assert reading.searches == ("q",), "opening is no search"


@pytest.mark.parametrize(
    ("turn", "available", "told"),
    [
        ("<open> d9 </open>", OPEN, "no search has found a passage of that id"),
        ("<open> d0 </open>", {}, "there is no tool open"),
        ("<open> </open>", OPEN, "the request is empty"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_told_and_repaired(
    tokenizer: Any, turn: str, available: dict[str, Any], told: str
) -> None:
    turns = [THINK + turn, THINK + "<answer> mara </answer>"]
    trajectory, _, shelf = play(tokenizer, turns, protocol=OPENING, tools=tools(available))
    assert told in trajectory.segments[2].text
    assert "to open, write <open> id </open>" in trajectory.segments[2].text
    assert trajectory.outcome == "finished"
    assert shelf.queries == []
    assert all(call.failure == told and call.results == () for call in trajectory.calls)


def test_what_a_tool_refused_is_no_search_and_no_evidence(tokenizer: Any) -> None:
    """The reason stands beside what was asked; a reward that looks for gold in results must not find it there."""

    class Echo(Tool):
        async def call(self, request: str, caller: Caller) -> SearchResult:
            raise BadRequest(f"mara {request}")

    class Module:
        module, config = "", None

        def build(self, **context: Any) -> Tool:
            return Echo()

    protocol = search_r1.build(search_r1.Config(instruction="short"))
    turns = [THINK + "<search> mara </search>", THINK + "<answer> x </answer>"]
    trajectory, _, _ = play(tokenizer, turns, protocol=protocol, tools={"search": Module()})
    assert "mara mara" in trajectory.segments[2].text
    score = build_reward(RewardConfig(retrieval_score=0.5), protocol)(TASK, trajectory)
    assert (score.reward, score.parts["searches"]) == (0.0, 0)


def test_a_tool_that_is_down_aborts(tokenizer: Any) -> None:
    shelf = Shelf(failure=InfrastructureError("no answer after 3 tries"))
    trajectory, _, _ = play(tokenizer, [THINK + "<search> q </search>"], shelf, protocol=OPENING, tools=tools(EXCERPTS))
    assert (trajectory.outcome, trajectory.calls) == ("aborted", [])


def test_a_policy_may_be_told_something_without_a_call(tokenizer: Any) -> None:
    def act(turns: Turns) -> Action:
        said = len(turns.texts) > 1
        return Answer(turns.newest) if said else Say(f"now answer: {turns.question}")

    trajectory, _, shelf = play(tokenizer, ["<think> ready </think> <search> ", "mara"], protocol=Scripted(act))
    assert [s.text for s in trajectory.segments if s.kind == "observation"] == ["now answer: " + TASK.question]
    assert (trajectory.outcome, shelf.queries, trajectory.calls) == ("finished", [], [])


@pytest.mark.parametrize("framing", ["plain", "chat_turns"])
def test_the_last_turn_is_told_so_and_read_as_such(tokenizer: Any, framing: str) -> None:
    protocol = Scripted(lambda turns: Answer(turns.newest) if turns.last_call else Call("search", "q"), "FINAL ")
    trajectory, _, shelf = play(tokenizer, ["a", "b", "mara"], protocol=protocol, max_turns=2, framing=framing)
    first, second = (s for s in trajectory.segments if s.kind == "observation")
    assert (first.last_call, second.last_call) == (False, True)
    assert "FINAL" not in first.text
    assert "</information>" in second.text.partition("FINAL " + TASK.question)[0]
    assert (trajectory.outcome, len(shelf.queries)) == ("finished", 2)
    assert protocol.read(trajectory).answer is not None
    assert protocol.read(trajectory).searches == ("q", "q")


def test_a_last_call_is_kept_where_passages_are_left_out(tokenizer: Any) -> None:
    protocol = Scripted(lambda turns: Answer("") if turns.last_call else Call("search", "q"), "FINAL ")
    shelf = Shelf(["long " * 100])
    trajectory, _, _ = play(tokenizer, ["a"], shelf, protocol=protocol, max_turns=1, max_observation_tokens=70)
    assert "FINAL " + TASK.question in trajectory.segments[2].text
    assert "long" not in trajectory.segments[2].text


def test_passages_that_repeat_the_last_call_are_data(tokenizer: Any) -> None:
    protocol = Scripted(lambda turns: Answer("x") if turns.last_call else Call("search", "q"), "FINAL ")
    shelf = Shelf(["FINAL " + TASK.question])
    trajectory, _, _ = play(tokenizer, ["a", "b", "c"], shelf, protocol=protocol, max_turns=2)
    assert [s.last_call for s in trajectory.segments if s.kind == "observation"] == [False, True]


def test_the_call_of_an_answer_is_recorded_and_not_shown(tokenizer: Any) -> None:
    protocol = Scripted(lambda turns: Answer("q", Call("search", "final query")))
    trajectory, script, shelf = play(tokenizer, ["x"], Shelf([LONG] * 5), protocol=protocol, top_k=4)
    assert trajectory.outcome == "finished"
    assert shelf.queries == [("final query", 4)]
    assert [len(call.results) for call in trajectory.calls] == [4]
    assert len(trajectory.segments[-1]) == 0
    assert trajectory.policy_mask().sum() == trajectory.num_policy_tokens
    assert len(script.asked) == 1


def test_an_answers_call_that_is_refused_is_scored_and_one_that_fails_aborts(tokenizer: Any) -> None:
    protocol = Scripted(lambda turns: Answer("q", Call("sql", "DROP TABLE x")))
    trajectory, _, _ = play(tokenizer, ["x"], protocol=protocol)
    assert (trajectory.outcome, trajectory.calls[0].failure) == ("finished", "there is no tool sql")
    down = Scripted(lambda turns: Answer("q", Call("search", "q")))
    trajectory, _, _ = play(tokenizer, ["x"], Shelf(failure=InfrastructureError("down")), protocol=down)
    assert trajectory.outcome == "aborted"


def test_a_tool_is_named_in_the_configuration_like_any_plugin() -> None:
    from search_agent.environment import Config

    config = build(Config, {"tools": EXCERPTS | OPEN})
    assert config.tools["search"].config.excerpt_words == 3
    with pytest.raises(UserError, match=r"tools\.open\.plugin: there is no module search_agent\.tools\.opem"):
        build(Config, {"tools": {"open": {"plugin": "search_agent.tools.opem"}}})
    with pytest.raises(UserError, match="excerpt_words=0"):
        build(Config, {"tools": {"search": {**EXCERPTS["search"], "excerpt_words": 0}}})


requests = st.text(max_size=20) | st.sampled_from(["d0", " d1 ", HOSTILE])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["search", "open", "answer", "think"]), requests), max_size=5))
def test_whatever_a_policy_asks_for_ends_scored(tokenizer: Any, blocks: list[tuple[str, str]]) -> None:
    turns = [f"<{tag}>{text}</{tag}>" for tag, text in blocks]
    shelf = Shelf([HOSTILE, LONG])
    trajectory, _, _ = play(tokenizer, turns, shelf, protocol=OPENING, tools=tools(EXCERPTS | OPEN), max_turns=3)
    assert trajectory.outcome in ("finished", "truncated")
    assert len(OPENING.read(trajectory).searches) == len(shelf.queries)
    written = "".join(segment.text for segment in trajectory.generated)
    reward = build_reward(RewardConfig(), OPENING)(TASK, trajectory).reward
    assert reward == 0 or "mara" in written
