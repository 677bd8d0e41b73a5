"""How the teacher writes one turn in each protocol that a warm-up can teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from preprocess.embedded.tiny_model import END_OF_MESSAGE, END_OF_TEXT
from search_agent.protocols.base import SearchProtocol
from search_agent.protocols.framing import FramingKind

StyleName = Literal["autorefine", "search_r1", "research", "exsearch"]

PASSAGES_PER_SEARCH = 2
"""Two: the right passage and one that shares a word with it, so that reading takes a choice and traces stay short."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the teacher does in one turn; the text that says so is the style's."""

    fact: str = ""
    """What it notes down from the passages it was just shown; empty before the first search."""
    thought: str = ""
    """What it wants to know, or why it answers; empty if the fact says it all."""
    query: str = ""
    """What it searches for; empty if it answers."""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Style:
    """A protocol as live episodes of the small model use it, and the teacher's way of writing in it."""

    protocol: SearchProtocol
    write: Callable[[Step], list[str]]
    """The generated texts of one step: one turn, or one to end the search and one for the answer."""
    framing: FramingKind = "plain"
    """How live episodes frame the texts, and so the traces."""


def make_style(name: StyleName) -> Style:
    """The style of this name; its protocol gives the one-line instruction."""
    if name == "autorefine":
        from search_agent.protocols import autorefine

        config = autorefine.Config(instruction="short", passages=PASSAGES_PER_SEARCH)
        return Style(autorefine.build(config), _autorefine)
    if name == "search_r1":
        from search_agent.protocols import search_r1

        return Style(search_r1.build(search_r1.Config(instruction="short")), _search_r1)
    if name == "research":
        from search_agent.protocols import research

        return Style(research.build(research.Config(instruction="short")), _research)
    from search_agent.protocols import exsearch

    return Style(exsearch.build(exsearch.Config(instruction="short")), _exsearch, "chat_turns")


def _autorefine(step: Step) -> list[str]:
    """``refine`` after passages, ``think`` where there is a thought, then the action."""
    return [_block("refine", step.fact) + _block("think", step.thought) + (_search(step) or _answer(step.answer))]


def _search_r1(step: Step) -> list[str]:
    """The fact is noted in the thought that opens every turn."""
    return [_block("think", _joined(step)) + (_search(step) or _answer(step.answer))]


def _research(step: Step) -> list[str]:
    """As Search-R1, but the answer stands in a box and the policy ends its turn itself."""
    end = _answer(rf"\boxed{{ {step.answer} }}") + END_OF_TEXT
    return [_block("think", _joined(step)) + (_search(step) or end)]


def _exsearch(step: Step) -> list[str]:
    """The fact, then the next query, or the end of the search and the bare answer; queries say what is thought."""
    fact = f"<FACT> {step.fact}\n" if step.fact else ""
    turns = [f"{fact}<QUERY> {step.query}"] if step.query else [f"{fact}<FINAL>", step.answer]
    return [f"{turn}{END_OF_MESSAGE}" for turn in turns]


def _joined(step: Step) -> str:
    return " ".join(part for part in (step.fact, step.thought) if part)


def _search(step: Step) -> str:
    return f"<search> {step.query} </search>" if step.query else ""


def _answer(text: str) -> str:
    return f"<answer> {text} </answer>"


def _block(tag: str, text: str) -> str:
    return f"<{tag}> {text} </{tag}>\n" if text else ""
