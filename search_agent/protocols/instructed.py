"""What AutoRefine and Search-R1 have in common: an instruction with the question at its end, numbered passages between
two tags, an answer tag that may end the episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from search_agent.protocols.base import Passage, TagProtocol
from search_agent.protocols.render import as_question, numbered_passages, read_prompt, try_again


class InstructedProtocol(TagProtocol):
    """A protocol whose prompt is one text; what differs between systems is said by class attributes."""

    system: ClassVar[str | None] = None

    def __init__(self, instruction: str, *, prompt_file: str | None, stop_at_answer: bool) -> None:
        """``instruction`` holds ``{question}``; the text of ``prompt_file`` replaces it.

        Raises UserError if that file cannot be read, or has no place for the question.
        """
        actions = (*self.tools, "answer") if stop_at_answer else self.tools
        self.stop: tuple[str, ...] = tuple(f"</{tag}>" for tag in actions)
        self._template = read_prompt(prompt_file, needs_question=True) if prompt_file else instruction

    def prompt(self, question: str) -> str:
        """The instruction and the question."""
        return self._template.replace("{question}", as_question(question))

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """The opening tag, the numbered passages, the closing tag."""
        return [f"\n\n<{self.results}>", *numbered_passages(passages), f"</{self.results}>\n\n"]

    def observe_invalid(self, reason: str) -> str:
        """Name the fault and the actions there are."""
        return try_again(reason, self.tools)
