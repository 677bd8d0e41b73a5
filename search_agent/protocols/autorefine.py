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

from search_agent.protocols.actions import Action
from search_agent.protocols.instructed import InstructedConfig, InstructedProtocol
from search_agent.protocols.render import count_word, tags_balanced
from verl.errors import at_least
from verl.trajectory import Segment


@dataclass(frozen=True)
class Config(InstructedConfig):
    """Settings of the AutoRefine protocol."""

    passages: int = 3
    """How many passages a search is said to return (passages); keep it equal to the environment's ``top_k``. 3 as
    published."""
    compat: Literal["none", "upstream"] = "none"
    """``upstream`` calls a format valid when each tag is opened as often as it is closed, in whatever order, takes what
    is refined before any search, and always speaks of three documents; ``none`` checks the order of the blocks."""

    @property
    def named_passages(self) -> int | None:
        """How many passages the prompt promises; None where its words name no number."""
        if self.instruction == "short" or self.prompt_file is not None or self.compat == "upstream":
            return None
        return self.passages

    def __post_init__(self) -> None:
        at_least(self, 1, "passages")


class AutoRefine(InstructedProtocol):
    """Implements ``SearchProtocol``."""

    name = "autorefine"
    blocks = ("think", "search", "refine", "answer")
    results = "documents"

    def __init__(self, config: Config) -> None:
        super().__init__(config, _instruction(config))
        self.config = config

    def in_order(self, names: Sequence[str], after_results: bool) -> bool:
        """``think`` first; after documents ``refine`` first, with an optional ``think``."""
        opening = list(names[:-1])
        allowed = (["refine"], ["refine", "think"]) if after_results else (["think"],)
        return opening in allowed and names[-1] in (*self.tools, "answer")

    def refining(self, heads: Sequence[str], shown: Sequence[int]) -> Sequence[str]:
        """As published with ``compat: upstream``: all turns."""
        return heads if self.config.compat == "upstream" else super().refining(heads, shown)

    def format_valid(self, turns: Sequence[Segment], actions: Sequence[Action]) -> bool:
        """The order of the blocks; with ``compat: upstream`` only that tags are balanced."""
        if self.config.compat == "upstream":
            return tags_balanced("".join(turn.text for turn in turns), self.blocks)
        return super().format_valid(turns, actions)


def build(config: Config) -> AutoRefine:
    """Make the protocol."""
    return AutoRefine(config)


def _instruction(config: Config) -> str:
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
