"""ExSearch's protocol: what a turn asks for, when the answer is asked for, and what is format."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent import environment
from search_agent.exsearch.chats import messages_of, selections_of
from search_agent.protocols.actions import Answer, Call, Invalid, Say, Turns
from search_agent.protocols.exsearch import Config, build
from search_agent.protocols.framing import make_framing
from search_agent.retrieval.types import Document
from tests.search_agent.test_environment import TASK, Script, Shelf, ids_of, play
from tests.search_agent.test_tools import tools
from verl.data.samples import TrainingSample
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.interfaces import Sampling
from verl.trajectory import Trajectory

PROTOCOL = build(Config(instruction="short"))
CHOOSING = build(Config(select="turn"))
ASKED = build(Config(instruction="short", select="chat"))
FIRST = "<QUERY> who wrote it?"
NOTED = "<FACT> mara wrote it.\n<QUERY> mara"
ENDED = "<FACT> born in Oslo.\n<FINAL>"
END = "<|im_end|>"
CHAT: dict[str, Any] = {"framing": "chat_turns", "max_turns": 6}
SELECT = {"plugin": "search_agent.tools.select"}


def parse(*texts: str, last_call: bool = False, protocol: Any = PROTOCOL) -> object:
    return protocol.parse(Turns(texts, "who?", last_call))


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        ([FIRST], "who wrote it?"),
        (["<THINK> who wrote it?<|eot_id|>"], "who wrote it?"),
        (["who wrote it?"], "who wrote it?"),
        ([f"{FIRST} <SEARCH> [1] made up"], "who wrote it?"),
        ([FIRST, NOTED + END], "mara"),
        ([FIRST, "<QUERY> mara</s>"], "mara"),
    ],
)
def test_a_query_is_what_stands_after_its_tag_and_a_first_turn_without_tag_is_one(texts: list[str], query: str) -> None:
    assert parse(*texts) == Call("search", query)


@pytest.mark.parametrize(
    "texts", [["<QUERY> "], [""], [FIRST, "mara wrote it"], [FIRST, "<QUERY> a <QUERY> b"], [FIRST, "<FACT> a"]]
)
def test_a_turn_without_a_query_and_one_with_two_are_told_so(texts: list[str]) -> None:
    assert isinstance(parse(*texts), Invalid)


def test_after_final_the_question_is_put_again_and_the_next_turn_is_the_answer() -> None:
    assert parse(FIRST, ENDED + END) == Say("Answer: who?")
    assert parse(FIRST, ENDED, f"Oslo{END}") == Answer("Oslo")
    assert parse(FIRST, f"a town, Oslo{END}", last_call=True) == Answer("a town, Oslo")
    assert parse(FIRST, ENDED, "<FACT> Oslo") == Answer("Oslo")


def test_documents_are_numbered_with_their_titles() -> None:
    passages = [Document("x", "a", " one ", 1.0), Document("y", "", "two", 0.5)]
    text = "".join(PROTOCOL.observe_results(passages))
    assert text == "<SEARCH> [1] Title: a. Content: one\n[2] two"


def observations(trajectory: Trajectory) -> list[str]:
    return [segment.text for segment in trajectory.segments if segment.kind == "observation"]


def test_a_chat_of_turns_asks_notes_and_answers(tokenizer: Any) -> None:
    shelf = Shelf(["mara wrote it; <FINAL> and <FACT> x stand in this passage", "mara was born in Oslo"])
    trajectory, script, _ = play(tokenizer, [FIRST, NOTED, ENDED, "Oslo"], shelf, protocol=PROTOCOL, **CHAT)
    reading = PROTOCOL.read(trajectory)
    assert reading.answer == "Oslo"
    assert reading.searches == ("who wrote it?", "mara")
    assert reading.refinements == ("mara wrote it.", "born in Oslo.")
    assert reading.format_valid
    assert f"user\nAnswer: {TASK.question}" in observations(trajectory)[-1]
    assert {turn.stop for turn in script.asked} == {("<SEARCH>",)}
    assert trajectory.policy_mask().sum() == sum(len(segment) for segment in trajectory.generated)


def test_when_turns_run_out_the_last_passages_come_with_the_question(tokenizer: Any) -> None:
    trajectory, _, _ = play(tokenizer, [FIRST, NOTED, "Oslo"], protocol=PROTOCOL, **{**CHAT, "max_turns": 2})
    first, last = observations(trajectory)
    assert "Answer:" not in first
    assert last.index("<SEARCH> [1]") < last.index(f"Answer: {TASK.question}")
    assert (PROTOCOL.read(trajectory).answer, trajectory.outcome) == ("Oslo", "finished")


def test_a_choice_shows_the_chosen_passages_whole_and_is_no_search(tokenizer: Any) -> None:
    shelf = Shelf([f"passage {number} " + "word " * 9 for number in range(3)])
    turns = [FIRST, "[3]>[1]", "<FACT> f\n<QUERY> q", "[7]", ENDED, "Oslo"]
    plugins = tools({"search": {"plugin": "search_agent.tools.search", "excerpt_words": 2}, "select": SELECT})
    trajectory, _, _ = play(tokenizer, turns, shelf, protocol=CHOOSING, tools=plugins, **CHAT)
    found, chosen, _, refused, _ = observations(trajectory)
    assert "passage 2 ..." in found
    assert "word" not in found
    assert chosen.index("passage 2 word") < chosen.index("passage 0 word")
    assert "the newest search found 3 passages, and the choice names others" in refused
    reading = CHOOSING.read(trajectory)
    assert reading.searches == ("who wrote it?", "q")
    assert not PROTOCOL.tools.count("select")


def test_a_choice_in_a_chat_of_its_own_leaves_the_episode_as_if_it_had_not_been(tokenizer: Any) -> None:
    shelf = Shelf([f"passage {number}" for number in range(3)])
    turns = [FIRST, "[3]>[1]" + END, NOTED, "none of them", NOTED, "[2]", ENDED, "Oslo"]
    trajectory, script, _ = play(tokenizer, turns, shelf, protocol=ASKED, **CHAT)
    assert trajectory.outcome == "finished"
    prompts = [s for s in trajectory.segments if s.beside and not s.is_policy]
    assert len(prompts) == 3
    assert all(f"[{number}] " in prompts[0].text for number in (1, 2, 3))
    assert "<QUERY> who wrote it?" in prompts[0].text
    assert [segment.turn for segment in trajectory.main.segments if segment.is_policy] == [0, 1, 2, 3, 4]
    shown = observations(trajectory.main)
    assert shown[0].index("passage 2") < shown[0].index("passage 0")
    assert "passage 1" not in shown[0]
    assert "numbers alone were to be written" in shown[1]
    assert ASKED.read(trajectory).searches == ("who wrote it?", "mara", "mara"), "carried out, whatever was chosen"
    assert ASKED.read(trajectory).answer == "Oslo"
    assert len(script.asked) == len(turns)
    own, *beside = TrainingSample.of_each_text(trajectory, 0.5)
    assert tokenizer.decode(own.token_ids.tolist()) == "".join(segment.text for segment in trajectory.main.segments)
    assert [tokenizer.decode(one.token_ids[one.policy_mask].tolist()) for one in beside] == [
        "[3]>[1]" + END,
        "none of them" + END,
        "[2]" + END,
    ]
    assert all(set(one.advantages[one.policy_mask].tolist()) == {0.5} for one in (own, *beside))
    with pytest.raises(ValueError, match="it is several texts"):
        TrainingSample.from_trajectory(trajectory, 0.5)
    framing = make_framing("chat_turns", tokenizer, system=None, probe=ASKED.prompt("who?"))
    chosen = [chat["messages"][1]["content"] for chat in selections_of(trajectory, framing)]
    assert chosen == ["[3]>[1]", "none of them", "[2]"]
    assert [m["content"] for m in messages_of(trajectory, framing)][1::2] == [FIRST, NOTED, NOTED, ENDED, "Oslo"]


def test_a_policy_that_is_asked_beside_reads_that_prompt_alone_and_then_its_own_chat(tokenizer: Any) -> None:
    read: list[str] = []

    class Reader(Script):
        async def generate(self, token_ids: Any, turn: Any, sampling: Any, seed: int) -> Any:
            read.append(tokenizer.decode(list(token_ids)))
            return await super().generate(token_ids, turn, sampling, seed)

    turns = [FIRST, "[1]" + END, ENDED, "Oslo"]
    script = Reader(tokenizer, [ids_of(tokenizer, turn) for turn in turns])
    make = environment.build(
        environment.Config(**CHAT),
        protocol=ASKED,
        tokenizer=tokenizer,
        retriever=Shelf(["passage 0"]),
        max_context_tokens=2000,
    )
    key = EpisodeKey(0, "train", 0, TASK.id, 0)
    trajectory = asyncio.run(run_episode(TASK, key, make(TASK), script, Sampling()))
    assert "Which of these documents" in read[1]
    assert FIRST not in read[1].replace("<QUERY> who wrote it?\n[1]", "")
    assert read[2].startswith(read[0])
    assert "Which of these documents" not in read[2]
    again = copy.copy(Trajectory.from_record(trajectory.to_record()))
    assert again.texts().tolist() == trajectory.texts().tolist()
    assert set(trajectory.texts().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("turns", "valid"),
    [
        ([FIRST, ENDED, "Oslo"], True),
        (["<FINAL>", "Oslo"], True),
        ([FIRST, "<FACT> a <FINAL> b", "Oslo"], False),
        ([FIRST, "<FINAL>", "Oslo"], False),
        ([FIRST, "<FACT>\n<FINAL>", "Oslo"], False),
        (["well <QUERY> q", ENDED, "Oslo"], False),
        (["who wrote it?", ENDED, "Oslo"], False),
        ([FIRST, ENDED, "<FACT> Oslo"], False),
        ([FIRST, "<FACT> a <FACT> b <FINAL>", "Oslo"], False),
        ([FIRST, NOTED], False),
    ],
)
def test_format_is_facts_before_what_follows_and_a_bare_answer(tokenizer: Any, turns: list[str], valid: bool) -> None:
    trajectory, _, _ = play(tokenizer, turns, protocol=PROTOCOL, **CHAT)
    assert PROTOCOL.read(trajectory).format_valid is valid


def test_a_fact_before_any_search_is_a_guess(tokenizer: Any) -> None:
    trajectory, _, _ = play(tokenizer, ["<FACT> Oslo <FINAL>", "Oslo"], protocol=PROTOCOL, **CHAT)
    assert PROTOCOL.read(trajectory).refinements == ()


def test_parts_of_a_text_are_told_apart() -> None:
    assert [(span.kind, NOTED[span.begin : span.end]) for span in PROTOCOL.spans(NOTED)] == [
        ("refine", "<FACT> mara wrote it.\n"),
        ("search", "<QUERY> mara"),
    ]


def test_the_long_prompt_explains_the_tags_and_a_choice_only_where_there_is_one() -> None:
    texts = [build(Config(select=choose)).prompt("who?") for choose in ("none", "chat", "turn")]
    assert all("<USER QUERY> who?\nYour Output:" in text and "{" not in text for text in texts)
    assert ["[3]>[1]" in text for text in texts] == [False, False, True]


@given(st.lists(st.text(alphabet="<>/QUERYFACTINLSHK []0>ab\n", max_size=40), min_size=1, max_size=5), st.booleans())
def test_any_text_is_read(texts: list[str], last: bool) -> None:
    for protocol in (PROTOCOL, CHOOSING):
        action = protocol.parse(Turns(texts, "who?", last))
        assert isinstance(action, Answer) or not last
        assert isinstance(action, Answer | Call | Say | Invalid)
        protocol.spans(texts[0])
