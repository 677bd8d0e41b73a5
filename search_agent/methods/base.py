"""What methods share: prompts that are composed anew for every turn, and plain text instead of tags.

A method is a ``SearchProtocol`` whose prompt holds what was found and written so far (``compose``). Episodes are played
by ``search_agent.methods.composing``. Wordings are ours; what they ask for is what FlashRAG's prompts ask for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from search_agent.protocols.actions import Action, Answer, Call, Invalid, Turns
from search_agent.protocols.base import NothingBeside, Passage, Reading, Span
from search_agent.protocols.render import as_question, numbered_passages, read_prompt
from verl.trajectory import Trajectory

Shows = Literal["nothing", "newest", "all", "context"]
SHORT_ANSWER = "Answer the question in as few words as possible, and write nothing but the answer."
_END_OF_TURN = re.compile(r"(<\|[^<>|]+\|>|</s>|<｜[^<>]+｜>)\s*$")


@dataclass(frozen=True)
class Config:
    """Settings of a method."""

    prompt_file: str | None = None
    """A file whose text replaces the method's instruction; the documents, the question and what was written so far
    follow it. null uses our wording."""


class Method(NothingBeside):
    """Implements ``SearchProtocol``; a method sets the class attributes and ``act``."""

    name: ClassVar[str]
    instruction: ClassVar[str] = SHORT_ANSWER
    shows: ClassVar[Shows] = "nothing"
    """Which passages stand in a prompt: what the newest search found, all that was found (the newest first), or the
    task's own ``metadata.context``."""
    begins_with_search: ClassVar[bool] = True
    """Whether the question is searched for before the first turn."""
    system: str | None = None
    prefill = ""
    stop: tuple[str, ...] = ("\n",)
    """A line, where the policy writes plain text; a message of a chat ends itself."""
    message_stop: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        """Raises UserError if ``prompt_file`` cannot be read."""
        file = config.prompt_file
        self._instruction = read_prompt(file, needs_question=False).strip() if file else self.instruction

    def compose(self, question: str, passages: Sequence[Passage], written: Sequence[str]) -> str:
        """The prompt of a turn, from what is shown and the turns before it."""
        parts = [self._instruction]
        if passages:
            parts.append("\n".join(["Documents:", *(text.strip() for text in numbered_passages(passages))]))
        return "\n\n".join([*parts, f"Question: {as_question(question)}\n{self.cue(written)}"])

    def cue(self, written: Sequence[str]) -> str:
        """What the policy writes on from."""
        return "Answer:"

    def act(self, text: str, turns: Turns) -> Action:
        """What follows from a turn that says ``text``; ``turns.last_call`` says that no other comes."""
        return Answer(text)

    def parse(self, turns: Turns) -> Action:
        """See ``SearchProtocol``; a turn that says nothing is no action."""
        text = said(turns.newest)
        return self.act(text, turns) if text else Invalid("the turn says nothing")

    def prompt(self, question: str) -> str:
        """The first prompt, before anything is found."""
        return self.compose(question, [], [])

    def read(self, trajectory: Trajectory) -> Reading:
        """The answer of the last turn, and every search that was carried out."""
        texts = [turn.text for turn in trajectory.turns]
        action = self.parse(Turns(texts, last_call=True)) if texts and trajectory.outcome == "finished" else None
        answer = action.text if isinstance(action, Answer) else None
        searches = tuple(call.request for call in trajectory.calls if call.tool == "search" and call.failure is None)
        return Reading(answer, searches, tuple(map(said, texts[:-1])), (), format_valid=answer is not None)

    def spans(self, text: str) -> list[Span]:
        """All of it is one part."""
        return [Span("answer", 0, len(text))] if text else []

    def last_call(self, question: str) -> str | None:
        """Nothing is said: the prompt is composed anew."""
        return None

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """Never asked for: what was found stands in the next prompt."""
        return [""]

    def observe_invalid(self, reason: str) -> str:
        """Never asked for either."""
        return ""


def said(text: str) -> str:
    """What a turn says: without a thought before it, one that never ends included, and without what ends a turn."""
    _, _, after = text.rpartition("</think>")
    return "" if "<think>" in after else _END_OF_TURN.sub("", after).strip()


def line_of(text: str) -> str:
    """The first line of a text."""
    return text.partition("\n")[0].strip()


__all__ = ["SHORT_ANSWER", "Action", "Answer", "Call", "Config", "Method", "Turns", "line_of", "said"]
