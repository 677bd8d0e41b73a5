"""The Search-R1 protocol: think, search, read, answer (arXiv 2503.09516).

    <think> .. </think> <search> .. </search>   -> <information> Doc 1(Title: ..) .. </information>
    <think> .. </think> <answer> .. </answer>

Every turn opens with a thought. A turn may answer without a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search_agent.protocols.base import Passage, TagProtocol
from search_agent.protocols.render import VERBATIM, fill, numbered_passages, read_prompt, try_again


@dataclass(frozen=True)
class Config:
    """Settings of the Search-R1 protocol."""

    instruction: Literal["short", "published", "none"] = "published"
    """``published`` explains every tag, for models that have never seen them; ``short`` is one line, for models that
    a warm-up has taught the format; ``none`` adds nothing, for data whose questions are whole prompts already."""
    prompt_file: str | None = None
    """A file whose text, with ``{question}`` in it, replaces the instruction: the exact wording that a released
    checkpoint was trained on, say. null uses ``instruction``."""
    stop_at_answer: bool = True
    """True ends the episode at ``</answer>``, as published; False lets the policy sample its end-of-turn token after
    the answer and trains it, for chat models that will be served."""


class SearchR1(TagProtocol):
    """Implements ``SearchProtocol``."""

    name = "search_r1"
    system = None
    blocks = ("think", "search", "answer")
    results = "information"

    def __init__(self, config: Config) -> None:
        self.stop = ("</search>", "</answer>") if config.stop_at_answer else ("</search>",)
        if config.prompt_file:
            self._template = read_prompt(config.prompt_file, needs_question=True)
        else:
            self._template = {"published": _PUBLISHED, "short": _SHORT, "none": VERBATIM}[config.instruction]

    def prompt(self, question: str) -> str:
        """The instruction and the question."""
        return fill(self._template, question)

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """``<information>``, the numbered passages, ``</information>``."""
        return ["\n\n<information>", *numbered_passages(passages), "</information>\n\n"]

    def observe_invalid(self, reason: str) -> str:
        """Name the fault and the two actions there are."""
        return try_again(reason)


def build(config: Config) -> SearchR1:
    """Make the protocol."""
    return SearchR1(config)


_SHORT = "Search, then answer. Question: {question}\n"
_PUBLISHED = """\
Answer the question below. Each time you learn something, first reason about it between <think> and </think>. If you \
then find that a fact is missing, ask a search engine by writing <search> query </search>; what it finds comes back \
between <information> and </information>. You may search as often as you want. When nothing more is missing, write \
the answer by itself between <answer> and </answer>, for example <answer> Lisbon </answer>.
Question: {question}
"""
