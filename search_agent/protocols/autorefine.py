"""The AutoRefine protocol: think, search, refine what the documents say, answer (arXiv 2505.11277).

    <think> .. </think> <search> .. </search>   -> <documents> Doc 1(Title: ..) .. </documents>
    <refine> .. </refine> <search> .. </search> -> <documents> .. </documents>
    <refine> .. </refine> <answer> .. </answer>

Each turn after documents opens with a refinement; a thought may follow it. A turn may answer without a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search_agent.protocols.base import Action, Passage, TagProtocol
from search_agent.protocols.render import (
    VERBATIM,
    count_word,
    fill,
    numbered_passages,
    read_prompt,
    tags_balanced,
    try_again,
)
from verl.errors import UserError
from verl.trajectory import Segment


@dataclass(frozen=True)
class Config:
    """Settings of the AutoRefine protocol."""

    instruction: Literal["short", "published", "none"] = "published"
    """``published`` explains every tag, for models that have never seen them; ``short`` is one line, for models that
    a warm-up has taught the format; ``none`` adds nothing, for data whose questions are whole prompts already."""
    prompt_file: str | None = None
    """A file whose text, with ``{question}`` in it, replaces the instruction: the exact wording that a released
    checkpoint was trained on, say. null uses ``instruction``."""
    passages: int = 3
    """How many passages a search is said to return (passages); keep it equal to the environment's ``top_k``. 3 as
    published."""
    stop_at_answer: bool = True
    """True ends the episode at ``</answer>``, as published; False lets the policy sample its end-of-turn token after
    the answer and trains it, for chat models that will be served."""
    compat: Literal["none", "upstream"] = "none"
    """``upstream`` calls a format valid when each tag is opened as often as it is closed, in whatever order, and
    always speaks of three documents; ``none`` checks the order of the blocks."""

    def __post_init__(self) -> None:
        if self.passages < 1:
            raise UserError(f"passages is {self.passages}: write the number of passages a search returns, at least 1")


class AutoRefine(TagProtocol):
    """Implements ``SearchProtocol``."""

    name = "autorefine"
    system = None
    blocks = ("think", "search", "refine", "answer")
    results = "documents"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stop = ("</search>", "</answer>") if config.stop_at_answer else ("</search>",)
        self._template = (
            read_prompt(config.prompt_file, needs_question=True) if config.prompt_file else _template(config)
        )

    def prompt(self, question: str) -> str:
        """The instruction and the question."""
        return fill(self._template, question)

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """``<documents>``, the numbered passages, ``</documents>``."""
        return ["\n\n<documents>", *numbered_passages(passages), "</documents>\n\n"]

    def observe_invalid(self, reason: str) -> str:
        """Name the fault and the two actions there are."""
        return try_again(reason)

    def in_order(self, names: Sequence[str], after_results: bool) -> bool:
        """``think`` first; after documents ``refine`` first, with an optional ``think``."""
        opening = list(names[:-1])
        allowed = (["refine"], ["refine", "think"]) if after_results else (["think"],)
        return opening in allowed and names[-1] in ("search", "answer")

    def format_valid(self, turns: Sequence[Segment], actions: Sequence[Action]) -> bool:
        """The order of the blocks; with ``compat: upstream`` only that tags are balanced."""
        if self.config.compat == "upstream":
            return tags_balanced("".join(turn.text for turn in turns), self.blocks)
        return super().format_valid(turns, actions)


def build(config: Config) -> AutoRefine:
    """Make the protocol."""
    return AutoRefine(config)


def _template(config: Config) -> str:
    if config.instruction == "none":
        return VERBATIM
    if config.instruction == "short":
        return "Search, refine, answer. Question: {question}\n"
    passages = 3 if config.compat == "upstream" else config.passages
    return _PUBLISHED.replace("{passages}", count_word(passages))


_PUBLISHED = """\
You are an assistant that answers questions by searching in several steps. Before anything else, reason about the \
question between <think> and </think>. Whenever a fact is missing, ask a search engine by writing \
<search> query </search>; it returns the {passages} passages that fit best, between <documents> and </documents>. \
After each search, write down what matters in those documents between <refine> and </refine>. Search as often as you \
need. Once you know enough, give the answer alone, short and without explanation, between <answer> and </answer>, for \
example <answer> Ada Lovelace </answer>.
Question: {question}
"""
