"""ExSearch's protocol (arXiv 2505.20128): a chat in which the policy asks, notes facts down, and answers at the end.

    <QUERY> a sub-query                          -> <SEARCH> [1] passage [2] passage ...
    <FACT> what they say  <QUERY> the next one   -> <SEARCH> ...
    <FACT> what they say  <FINAL>                -> the question once more
    the short answer, bare

Each line is a turn of its own (``environment.framing=chat_turns``), and the right side is a user's message. When turns
run out the last passages come with the question, and the next turn is the answer. ``<THINK>`` is read as ``<QUERY>``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from search_agent.protocols.actions import Action, Answer, Call, Invalid, Say, Turns
from search_agent.protocols.base import Passage, Reading, Span, TagProtocol
from search_agent.protocols.render import read_prompt
from verl.trajectory import Segment, Trajectory

_TAG = re.compile(r"<(QUERY|THINK|FACT|FINAL|SEARCH)>")
_END_OF_TURN = re.compile(r"\s*(?:<\|[^<>|]+\|>|</s>)?\s*$")
_CHOICE = re.compile(r"\s*\[\d+\](?:\s*>\s*\[\d+\])*")
_KINDS = {"QUERY": "search", "THINK": "search", "FACT": "refine", "FINAL": "answer", "SEARCH": "search"}


@dataclass(frozen=True)
class Config:
    """Settings of the protocol."""

    instruction: Literal["short", "published"] = "published"
    """``published`` explains every tag, for models that have never seen them; ``short`` is one line, for models that
    a warm-up has taught the format."""
    select: Literal["none", "turn", "chat"] = "none"
    """Whether the policy chooses by number (``[3]>[1]``) among what a search found, and is shown what it chose: the
    paper's re-ranking. ``chat`` asks it after each search in a chat of one turn beside the episode's own, which is
    trained on with the episode's weight, as published; ``turn`` lets it choose in a turn of the same chat. Published
    with an ``environment.top_k`` of 20."""
    prompt_file: str | None = None
    """A file whose text, with ``{question}`` in it, replaces the prompt: the exact wording of a released model, say."""


class ExSearch(TagProtocol):
    """Queries, facts, and a last turn for the answer."""

    name = "exsearch"
    system = None
    stop = ("<SEARCH>", "<FINAL>")
    message_stop = ("<SEARCH>",)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tools = ("search", "select") if config.select == "turn" else ("search",)
        if config.prompt_file:
            self._template = read_prompt(config.prompt_file, needs_question=True)
        elif config.instruction == "short":
            self._template = "Search, then answer. {question}"
        else:
            self._template = _PUBLISHED.replace("{choosing}", _CHOOSING if config.select == "turn" else "")

    def prompt(self, question: str) -> str:
        """The instruction and the question."""
        return self._template.replace("{question}", question.strip())

    def last_call(self, question: str) -> str:
        """The question once more."""
        words = "Answer: " if self.config.instruction == "short" else "Now give the final answer to the question: "
        return f"\n{words}{question.strip()}"

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """``<SEARCH>`` and the passages, numbered from 1."""
        texts = [f"{number}] {_document(passage)}" for number, passage in enumerate(passages, start=1)]
        return [
            "<SEARCH>",
            *(f"{' [' if number == 0 else chr(10) + '['}{text}" for number, text in enumerate(texts)),
            "",
        ]

    def observe_invalid(self, reason: str) -> str:
        """The fault, and what may be written."""
        return f"<SEARCH> nothing: {reason}. Write <FACT> a fact <QUERY> a query, or <FACT> a fact <FINAL>."

    def parse(self, turns: Turns) -> Action:
        """The bare answer where it was asked for; else the turn's query, its end of searching, or its choice."""
        text = _written(turns.newest)
        if turns.last_call or any("<FINAL>" in earlier for earlier in turns.texts[:-1]):
            return Answer(_TAG.sub("", text).strip())
        if "<FINAL>" in text:
            return Say(self.last_call(turns.question).lstrip())
        if self.config.select == "turn" and _CHOICE.fullmatch(text):
            return Call("select", text.strip())
        parts = re.split(r"<(?:QUERY|THINK)>", text.partition("<SEARCH>")[0])
        if len(parts) == 1 and len(turns.texts) > 1:
            return Invalid("there is neither <QUERY> nor <FINAL>")
        if len(parts) > 2:
            return Invalid("<QUERY> stands there more than once")
        query = _TAG.sub("", parts[-1]).strip()  # a first turn without a tag is a query, as published
        return Call("search", query) if query else Invalid("the query is empty")

    def beside(self, call: Call, passages: Sequence[Passage]) -> str | None:
        """Which passages of a search help, if that is to be asked."""
        asked = self.config.select == "chat" and call.tool == "search" and passages
        return selection_prompt(call.request, passages) if asked else None

    def parse_beside(self, text: str) -> Call | Invalid:
        """The numbers."""
        if _CHOICE.fullmatch(_written(text)):
            return Call("select", _written(text).strip())
        return Invalid("numbers alone were to be written, as in [3]>[1]")

    def read(self, trajectory: Trajectory) -> Reading:
        """As other protocols; facts are what was noted down after the first search."""
        reading = super().read(trajectory)
        facts = [fact for turn in trajectory.main.turns[1:] for fact in _facts(turn.text)] if reading.searches else []
        return replace(reading, refinements=tuple(facts))

    def head(self, turn: Segment) -> str:
        """All of the turn."""
        return turn.text

    def format_valid(self, turns: Sequence[Segment], actions: Sequence[Action]) -> bool:
        """A query or ``<FINAL>`` first, facts before whatever follows, a bare answer at the end."""
        if not actions or not isinstance(actions[-1], Answer):
            return False
        *texts, answer = [_written(turn.text).strip() for turn in turns]
        choices = [isinstance(action, Call) and action.tool == "select" for action in actions[:-1]]
        written = [text for text, choice in zip(texts, choices, strict=True) if not choice]
        return bool(answer) and not _TAG.search(answer) and all(_ordered(text, i > 0) for i, text in enumerate(written))

    def spans(self, text: str) -> list[Span]:
        """From each tag to the next."""
        tags = list(_TAG.finditer(text))
        ends = [*(tag.start() for tag in tags[1:]), len(text)]
        return [Span(_KINDS[tag[1]], tag.start(), end) for tag, end in zip(tags, ends, strict=False)]


def build(config: Config) -> ExSearch:
    """Make the protocol."""
    return ExSearch(config)


def _written(text: str) -> str:
    """A turn without the marker that ends it."""
    return _END_OF_TURN.sub("", text, count=1)


def _document(passage: Passage) -> str:
    content = passage.text.strip()
    return f"Title: {passage.title}. Content: {content}" if passage.title else content


def _facts(text: str) -> list[str]:
    facts = re.findall(r"<FACT>(.*?)(?=<(?:QUERY|THINK|FACT|FINAL|SEARCH)>|\Z)", text, re.DOTALL)
    return [fact.strip() for fact in facts if fact.strip()]


def _ordered(text: str, after_results: bool) -> bool:
    """Whether a turn is its tags in order, each but ``<FINAL>`` with something after it; a stop string may end it."""
    first, *rest = _TAG.split(text.removesuffix("<SEARCH>").strip())
    tags, contents = ["QUERY" if tag == "THINK" else tag for tag in rest[::2]], [part.strip() for part in rest[1::2]]
    allowed = (["FACT", "QUERY"], ["FACT", "FINAL"]) if after_results else (["QUERY"], ["FINAL"])
    filled = all(bool(content) != (tag == "FINAL") for tag, content in zip(tags, contents, strict=True))
    return not first.strip() and tags in allowed and filled


def selection_prompt(query: str, passages: Sequence[Passage]) -> str:
    """What opens a chat of one turn about a search: the passages that it found, numbered from 1."""
    listed = "\n".join(f"[{number}] {_document(passage)}" for number, passage in enumerate(passages, start=1))
    return (
        "Which of these documents help to answer the query? Write their numbers alone, the best first, as in [3]>[1].\n"
        f"<QUERY> {query}\n{listed}\nYour Output:"
    )


def selection(places: Sequence[int]) -> str:
    """The policy's turn in that chat; ``places`` count from 0."""
    return ">".join(f"[{place + 1}]" for place in places)


_CHOOSING = """\
After a search you may first choose: write the numbers of the useful documents, the best first, as in [3]>[1], and \
nothing else; then those are shown to you whole.
"""
_PUBLISHED = """\
You are a search agent that answers questions from Wikipedia, in steps: ask for one thing at a time, read what was \
found, keep the facts that matter, and go on until nothing is missing. These tags say what you do:
<QUERY> a query for the next thing to find out. End your turn after it; the documents come after <SEARCH>.
<FACT> the facts of the documents that help with the question. Write it after each search, before you go on.
<FINAL> nothing is missing any more. End your turn after it; then you are asked for the answer, which you give in a \
few words without a tag.
{choosing}<USER QUERY> {question}
Your Output:"""
