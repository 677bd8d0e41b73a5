"""The Search-R1 protocol: think, search, read, answer (arXiv 2503.09516).

    <think> .. </think> <search> .. </search>   -> <information> Doc 1(Title: ..) .. </information>
    <think> .. </think> <answer> .. </answer>

Every turn opens with a thought. A turn may answer without a search.
"""

from __future__ import annotations

from dataclasses import dataclass

from search_agent.protocols.instructed import InstructedConfig, InstructedProtocol


@dataclass(frozen=True)
class Config(InstructedConfig):
    """Settings of the Search-R1 protocol."""

    open_passages: bool = False
    """True adds ``<open> id </open>``, which shows a passage whole: for searches that show excerpts with ids. It needs
    ``environment.tools.open`` and ``environment.tools.search.excerpt_words``. Not in the paper."""


class SearchR1(InstructedProtocol):
    """Implements ``SearchProtocol``."""

    name = "search_r1"
    blocks: tuple[str, ...] = ("think", "search", "answer")
    results = "information"

    def __init__(self, config: Config) -> None:
        instruction = _SHORT if config.instruction == "short" else _PUBLISHED
        if config.open_passages:
            self.tools, self.blocks = ("search", "open"), ("think", "search", "open", "answer")
            instruction = f"{_OPEN}{instruction}"
        super().__init__(config, instruction)


def build(config: Config) -> SearchR1:
    """Make the protocol."""
    return SearchR1(config)


_OPEN = "A search shows how passages begin; write <open> id </open> to read one whole, with its id.\n"
_SHORT = "Search, then answer. Question: {question}\n"
_PUBLISHED = """\
Answer the question below. Each time you learn something, first reason about it between <think> and </think>. If you \
then find that a fact is missing, ask a search engine by writing <search> query </search>; what it finds comes back \
between <information> and </information>. You may search as often as you want. When nothing more is missing, write \
the answer by itself between <answer> and </answer>, for example <answer> Lisbon </answer>.
Question: {question}
"""
