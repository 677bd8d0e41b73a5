"""What AutoRefine and Search-R1 have in common: an instruction with the question at its end, numbered passages between
two tags, an answer tag that may end the episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from search_agent.protocols.base import Passage, TagProtocol
from search_agent.protocols.render import as_question, numbered_passages, read_prompt, try_again


@dataclass(frozen=True)
class InstructedConfig:
    """Settings that they share."""

    instruction: Literal["short", "published"] = "published"
    """``published`` explains every tag, for models that have never seen them; ``short`` is one line, for models that
    a warm-up has taught the format. Data that bring whole prompts need neither: ``data.prompts``."""
    prompt_file: str | None = None
    """A file whose text, with ``{question}`` in it, replaces the instruction: the exact wording that a released
    checkpoint was trained on, say. null uses ``instruction``."""
    stop_at_answer: bool = True
    """True ends the episode at ``</answer>``, as published; False lets the policy sample its end-of-turn token after
    the answer and trains it, for chat models that will be served."""
    prefill: str = ""
    """What begins the assistant's turn in the policy's stead, ``<think>`` say: read with the turn, never trained."""


class InstructedProtocol(TagProtocol):
    """A protocol whose prompt is one text; what differs between systems is said by class attributes."""

    system: ClassVar[str | None] = None

    def __init__(self, config: InstructedConfig, instruction: str) -> None:
        """``instruction`` holds ``{question}``; the text of ``prompt_file`` replaces it.

        Raises UserError if that file cannot be read, or has no place for the question.
        """
        actions = (*self.tools, "answer") if config.stop_at_answer else self.tools
        self.stop: tuple[str, ...] = tuple(f"</{tag}>" for tag in actions)
        self.prefill = config.prefill
        self._template = read_prompt(config.prompt_file, needs_question=True) if config.prompt_file else instruction

    def prompt(self, question: str) -> str:
        """The instruction and the question."""
        return self._template.replace("{question}", as_question(question))

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """The opening tag, the numbered passages, the closing tag."""
        return [f"\n\n<{self.results}>", *numbered_passages(passages), f"</{self.results}>\n\n"]

    def observe_invalid(self, reason: str) -> str:
        """Name the fault and the actions there are."""
        return try_again(reason, self.tools)
