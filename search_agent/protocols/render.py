"""Small texts and checks that several tag protocols share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from search_agent.protocols.base import Passage
from verl.errors import UserError

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def as_question(text: str) -> str:
    """Stripped, with the question mark that the published prompts add where it is missing."""
    text = text.strip()
    return text if text.endswith("?") else f"{text}?"


def count_word(count: int) -> str:
    """``three`` for 3; digits above ten."""
    return _WORDS[count] if count < len(_WORDS) else str(count)


_CALLS = {"search": "To search, write <search> query </search>", "open": "to open, write <open> id </open>"}


def try_again(reason: str, tools: Sequence[str] = ("search",)) -> str:
    """What the policy is told after an invalid action: the fault, and the actions there are."""
    calls = "; ".join(_CALLS[tool] for tool in tools)
    return f"\nThat was not a valid action: {reason}. {calls}; to answer, write <answer> answer </answer>.\n"


def numbered_passages(passages: Sequence[Passage]) -> list[str]:
    """One line a passage, numbered from 1: ``Doc 1(Title: ..) ..``, ``Doc 1 ..`` where it has no title.

    A piece after the first begins with a newline.
    """
    return [
        f"{'' if number == 1 else chr(10)}Doc {number}{_title(passage)} {passage.text.strip()}"
        for number, passage in enumerate(passages, start=1)
    ]


def _title(passage: Passage) -> str:
    return f"(Title: {passage.title})" if passage.title else ""


def tags_balanced(text: str, tags: Sequence[str]) -> bool:
    """The published format check: every tag is opened at least once, and as often as it is closed."""
    return all(0 < text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in tags)


def read_prompt(path: str, *, needs_question: bool) -> str:
    """The text of a prompt file, in which ``{question}`` stands for the question; other braces are ordinary text.

    Raises UserError if the file cannot be read, or lacks ``{question}`` where it needs it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt_file: {path} cannot be read as text ({error}): name a UTF-8 file") from error
    if needs_question and "{question}" not in text:
        raise UserError(f"prompt_file: {path} has no {{question}}: write it where the question belongs")
    return text
