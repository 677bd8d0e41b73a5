"""RARE's protocol (arXiv 2503.23513): knowledge stands in the prompt, and the policy reasons over it in one turn.

    <think> ... </think>
    <answer>X</answer>

Nothing is searched for: documents come with the task's own prompt (``open_book``), which the data set renders. The
wording is ours; what it asks for is the published prompt's. The policy ends its turn itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from search_agent.protocols.actions import Action, Answer, Invalid, Turns
from search_agent.protocols.base import Passage, TagProtocol

DOCUMENTS = "# Retrieved Documents"
_RULES = (
    re.compile(r"<answer>(.*?)</answer>", re.DOTALL),
    re.compile(r"<answer>(.*?)<answer>", re.DOTALL),
    re.compile(r"^([A-Z])[.,:]", re.DOTALL),
    re.compile(r"Answer:\s*([A-Z])\s*", re.DOTALL),
)
"""The published rules, each applied to what the one before it found."""
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>", "<｜end▁of▁sentence｜>")
"""What ends a turn in the models' templates, and may stand at the end of a generated text."""


@dataclass(frozen=True)
class Config:
    """There is nothing to set."""


class Rare(TagProtocol):
    """One turn: a thought, then one answer."""

    name = "rare"
    system = None
    stop = ()
    tools = ()
    results = "documents"
    blocks = ("think", "answer")

    def prompt(self, question: str) -> str:
        """The question without documents, for a task that brings no prompt of its own."""
        return open_book("", question, "")

    def parse(self, turns: Turns) -> Action:
        """The answer by the published rules; a lone letter is one too."""
        answer, found = extract(turns.newest)
        return Answer(answer) if found or re.fullmatch("[A-Z]", answer) else Invalid("<answer> is not closed")

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """Nothing is shown: there is no turn after the first."""
        return [""]

    def observe_invalid(self, reason: str) -> str:
        """Nothing is said either."""
        return ""


def build(config: Config) -> Rare:
    """Make the protocol."""
    return Rare()


def extract(text: str) -> tuple[str, bool]:
    """The answer that a text gives by the published rules, and whether any of them found one; else it is all of it."""
    found = False
    for rule in _RULES:
        if match := rule.search(text):
            text, found = match[1], True
    return text.replace("<", "").replace(">", "").strip(), found


def is_right(text: str, golds: Sequence[str]) -> bool:
    """Whether a text gives an accepted answer: both sides go through ``extract``, and must be equal as they stand."""
    for end in _ENDS:
        text = text.removesuffix(end)
    return extract(text)[0] in {extract(gold)[0] for gold in golds}


def closed_book(prompt: str) -> tuple[str, str]:
    """Documents and question that ``open_book`` wrote a prompt of; nothing in place of what another prompt lacks."""
    before, _, question = prompt.rpartition("\n\n# Question\n")
    return before.partition(f"{DOCUMENTS}\n")[2], question.strip()


def open_book(documents: str, question: str, field: str) -> str:
    """The published prompt in our words: role, rules, documents, question; nothing is said of documents that are empty.

    ``field`` is what the expert knows about (``medicine``); empty leaves the role and the rules out, for tiny models.
    """
    shown = f"{DOCUMENTS}\n{documents.strip()}\n\n" if documents.strip() else ""
    if not field:
        return f"{shown}# Question\n{question.strip()}\n"
    over = f" over what stands under {DOCUMENTS}" if shown else ""
    return (
        f"You are an expert in {field}. Think step by step{over}, then choose the one right option. Write your "
        "thoughts between <think> and </think>, and on the next line the letter of a definite answer between <answer> "
        f"and </answer>, like this: <answer>X</answer>\n\n{shown}# Question\n{question.strip()}\n"
    )
