"""Methods on a scripted policy: what each turn reads, what is searched for, and which answer counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from search_agent.evaluation.chat_tokens import ChatTokens
from search_agent.evaluation.diagnostics import diagnose
from search_agent.methods import base, composing, direct, given, ircot, iterretgen, rag
from search_agent.protocols import search_r1
from search_agent.retrieval.types import Document, SearchResult
from tests.search_agent.test_environment import Shelf
from verl.data.samples import TrainingSample
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.interfaces import Generation, Sampling, Turn
from verl.trajectory import Trajectory

TASK = Task("t", "who wrote the first book", ("mara",))


@dataclass
class Library:
    """Each query finds one passage of its own, but for what stands in ``alike``."""

    queries: list[str] = field(default_factory=list)

    async def search(self, query: str, k: int, **_: Any) -> SearchResult:
        self.queries.append(query)
        number = len(self.queries)
        found = [Document(f"d{number}", "", f"passage {number}", 1.0), Document("same", "", "passage always", 0.5)]
        return SearchResult(tuple(found[:k]), 0.1, cached=False)


@dataclass
class Says:
    """An engine that writes given texts, each up to its first stop string, and keeps what it was asked."""

    tokenizer: Any
    texts: Sequence[str]
    read: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        text = self.texts[len(self.read)]
        self.read.append(self.tokenizer.decode(list(token_ids)))
        self.turns.append(turn)
        ends = [text.find(stop) + len(stop) for stop in turn.stop if stop in text]
        text = text[: min(ends)] if ends else text
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Generation(ids, text, [-1.0] * len(ids), [0] * len(ids), "stop" if ends else "end_of_turn")


def play(
    protocol: Any,
    texts: Sequence[str],
    tokenizer: Any,
    *,
    task: Task = TASK,
    library: Any = None,
    context: int = 2000,
    **config: Any,
) -> tuple[Trajectory, Says, Any]:
    library = library or Library()
    engine = Says(tokenizer, texts)
    make = composing.build(
        composing.Config(**config),
        protocol=protocol,
        tokenizer=tokenizer,
        retriever=library,
        max_context_tokens=context,
    )
    key = EpisodeKey(0, "eval", 0, task.id, 0)
    return asyncio.run(run_episode(task, key, make(task), engine, Sampling())), engine, library


def test_direct_answers_at_once_and_searches_nothing(tokenizer: Any) -> None:
    protocol = direct.build(direct.Config())
    played, engine, library = play(protocol, [" mara\nand on"], tokenizer, max_turns=0)
    assert (protocol.read(played).answer, library.queries, played.calls) == ("mara", [], [])
    assert engine.read[0].endswith("Question: who wrote the first book?\nAnswer:")


def test_rag_shows_what_the_question_found_and_records_it_with_the_prompt(tokenizer: Any) -> None:
    protocol = rag.build(rag.Config())
    played, engine, library = play(protocol, [" mara"], tokenizer, max_turns=0, top_k=2)
    reading = protocol.read(played)
    assert library.queries == [TASK.question] == list(reading.searches)
    assert (reading.answer, reading.format_valid, played.outcome) == ("mara", True, "finished")
    assert "Doc 1 passage 1\nDoc 2 passage always" in engine.read[0]
    assert [segment.kind for segment in played.segments] == ["prompt", "generated"]
    assert [result.id for result in played.segments[0].calls[0].results] == ["d1", "same"]
    judged = Task("t", TASK.question, ("mara",), {"supporting_ids": ["d1"]})
    assert diagnose(judged, played, reading, right=True).verdict == "right with evidence"


def test_iterretgen_searches_for_question_and_answer_and_reads_the_newest_passages_alone(tokenizer: Any) -> None:
    protocol = iterretgen.build(iterretgen.Config())
    played, engine, library = play(protocol, ["one", "two", "three"], tokenizer, max_turns=2, top_k=1)
    assert library.queries == [TASK.question, f"{TASK.question} one", f"{TASK.question} two"]
    assert protocol.read(played).answer == "three"
    assert [[f"passage {n}" in text for n in (1, 2, 3)] for text in engine.read] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert all("one" not in text.split() and text.count("Question:") == 1 for text in engine.read), "each turn anew"


def test_ircot_keeps_a_sentence_a_turn_and_all_that_was_found_and_stops_at_the_answer(tokenizer: Any) -> None:
    protocol = ircot.build(ircot.Config())
    texts = [" It was J. K. Mara. She lived", "Mara is a name.", "So the answer is: J. K. Mara. And on", "never"]
    played, engine, library = play(protocol, texts, tokenizer, max_turns=4, top_k=2)
    assert library.queries == [TASK.question, "It was J. K. Mara.", "Mara is a name."]
    assert protocol.read(played).answer == "J. K. Mara"
    last = engine.read[-1]
    assert last.endswith("Reasoning: It was J. K. Mara. Mara is a name.")
    assert "Doc 1 passage 3\nDoc 2 passage always\nDoc 3 passage 2\nDoc 4 passage 1" in last, "newest first, each once"


def test_ircot_answers_with_its_chain_where_turns_run_out(tokenizer: Any) -> None:
    protocol = ircot.build(ircot.Config())
    played, _, library = play(protocol, ["One.", "Two."], tokenizer, max_turns=1)
    assert (protocol.read(played).answer, played.outcome, len(library.queries)) == ("One. Two.", "finished", 2)


def test_given_reads_the_tasks_context_and_cuts_its_middle_where_it_is_too_long(tokenizer: Any) -> None:
    protocol, words = given.build(given.Config()), [f"word{n}" for n in range(300)]
    task = Task("t", TASK.question, ("mara",), {"context": " ".join(words)})
    played, engine, library = play(protocol, ["mara"], tokenizer, task=task, max_turns=0, max_prompt_tokens=400)
    assert library.queries == []
    assert "word0 " in engine.read[0]
    assert "word299" in engine.read[0]
    assert "word150" not in engine.read[0]
    assert 300 < len(played.segments[0]) <= 400
    with pytest.raises(UserError, match=r"task t: its metadata has no context"):
        play(protocol, ["mara"], tokenizer, max_turns=0)
    with pytest.raises(UserError, match=r"its prompt has \d+ tokens without any document, and 20 are allowed"):
        play(protocol, ["mara"], tokenizer, task=task, max_turns=0, max_prompt_tokens=20)


@pytest.mark.parametrize("method", [rag, iterretgen, ircot])
def test_passages_that_find_no_room_are_left_out_and_not_recorded(method: Any, tokenizer: Any) -> None:
    shelf = Shelf(texts=["mara " * 30] * 3)
    protocol = method.build(method.Config())
    context = len(tokenizer(protocol.prompt(TASK.question))["input_ids"]) + 100
    played, engine, _ = play(
        protocol, ["the answer is mara"] * 3, tokenizer, library=shelf, max_turns=2, top_k=3, context=context,
        max_tokens_per_turn=20,
    )  # fmt: skip
    assert "passages did not fit" in played.reason
    for segment, read in zip(
        [segment for segment in played.segments if segment.kind != "generated"], engine.read, strict=True
    ):
        assert len(segment.calls[0].results) == read.count("(Title: a book)") < 3
    assert all(len(tokenizer(read)["input_ids"]) + turn.max_tokens <= context for read, turn in zip(
        engine.read, engine.turns, strict=True))  # fmt: skip


def test_a_chain_that_fills_the_prompt_ends_the_episode_and_not_the_command(tokenizer: Any) -> None:
    protocol = ircot.build(ircot.Config())
    context = len(tokenizer(protocol.prompt(TASK.question))["input_ids"]) + 160
    long = "mara wrote it " * 20 + "."
    played, engine, library = play(
        protocol, [long] * 9, tokenizer, max_turns=8, context=context, max_tokens_per_turn=100
    )
    assert (played.outcome, played.reason.partition(";")[0]) == ("truncated", "the context is full")
    assert len(library.queries) == len(engine.read) < 9
    assert protocol.read(played).answer is None


def test_the_context_of_a_turn_is_its_own_prompt_and_survives_being_saved(tokenizer: Any) -> None:
    played, engine, _ = play(iterretgen.build(iterretgen.Config()), ["one", "two"], tokenizer, max_turns=1)
    again = Trajectory.from_record(played.to_record())
    assert [segment.anew for segment in again.segments] == [False, False, True, False]
    assert tokenizer.decode(again.context_ids().tolist()) == engine.read[1] + "two"
    rebuild, columns = played.__reduce__()
    assert rebuild(*columns).to_record() == played.to_record()


def test_an_episode_whose_context_began_anew_is_never_trained_on(tokenizer: Any) -> None:
    played, _, _ = play(iterretgen.build(iterretgen.Config()), ["one", "two"], tokenizer, max_turns=1)
    with pytest.raises(ValueError, match="task t: its context began anew"):
        TrainingSample.from_trajectory(played, 1.0)


@pytest.mark.parametrize("framing", ["chat", "chat_turns"])
def test_a_message_of_a_chat_is_not_cut_at_a_line_and_its_thought_is_no_answer(framing: str) -> None:
    protocol = rag.build(rag.Config())
    texts = ["<think>\nit was\nmara\n</think>\n\nmara<|im_end|>"]
    played, engine, _ = play(protocol, texts, ChatTokens(), max_turns=0, framing=framing)
    assert (protocol.read(played).answer, engine.turns[0].stop) == ("mara", ())
    [message] = ChatTokens.messages(engine.tokenizer, played.segments[0].token_ids.tolist())
    assert message["role"] == "user"


@pytest.mark.parametrize("text", ["", "<think> never closed", "<|im_end|>"])
def test_a_turn_that_says_nothing_is_no_answer_and_is_not_repeated(text: str, tokenizer: Any) -> None:
    protocol = ircot.build(ircot.Config())
    played, _, library = play(protocol, [text], tokenizer, max_turns=4, framing="chat_turns")
    assert (protocol.read(played).answer, played.outcome, len(library.queries)) == (None, "finished", 1)


def test_an_outage_of_the_first_search_aborts_the_episode(tokenizer: Any) -> None:
    shelf = Shelf(failure=InfrastructureError("down"))
    played, _, _ = play(rag.build(rag.Config()), ["mara"], tokenizer, library=shelf, max_turns=0)
    assert played.outcome == "aborted"


def test_the_instruction_can_be_ones_own(tokenizer: Any, tmp_path: Any) -> None:
    (tmp_path / "mine.txt").write_text("Say it.\n")
    played, engine, _ = play(rag.build(rag.Config(str(tmp_path / "mine.txt"))), ["mara"], tokenizer, max_turns=0)
    assert engine.read[0].startswith("Say it.\n\nDocuments:\nDoc 1")
    assert played.outcome == "finished"


def test_a_protocol_that_composes_nothing_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="plays methods, and protocol search_r1 is none"):
        play(search_r1.build(search_r1.Config()), [], tokenizer)


@pytest.mark.parametrize(
    ("text", "told"), [("a\n b", "a\n b"), ("<think> x </think> b <|eot_id|>\n", "b"), ("a</s>", "a"), ("<b>", "<b>")]
)
def test_what_a_turn_says(text: str, told: str) -> None:
    assert base.said(text) == told
