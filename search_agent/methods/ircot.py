"""IRCoT (arXiv 2212.10509): a sentence of reasoning, a search for that sentence, the next sentence, and so on.

As in the paper the first sentence of what is generated is kept and the rest is dropped, and all that was found stays in
the prompt (the newest first, since what finds no room is left out from the end). A sentence with "answer is" ends the
episode; where turns run out the chain of sentences is the answer, as in FlashRAG, whose five iterations are
``environment.max_turns=4`` and the last turn. The prompt has no worked examples, the paper's has twenty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from search_agent.methods.base import Action, Answer, Call, Config, Method, Turns, line_of, said

_SENTENCE = re.compile(r".*?(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|Jr|Sr|vs|No))(?<!\bMrs)[.!?](?=\s|$)")
_ANSWER = re.compile(r"\banswer is\b[:\s]*(.*)", re.IGNORECASE)


class IRCoT(Method):
    """A sentence a turn."""

    name = "ircot"
    shows = "all"
    instruction = (
        "Answer a question that may need several documents, step by step. Write the next sentence of the reasoning, "
        "one sentence alone, from the documents below. When nothing is missing any more, write: "
        "So the answer is: followed by the answer in as few words as possible."
    )

    def cue(self, written: Sequence[str]) -> str:
        """The sentences so far."""
        return " ".join(["Reasoning:", *(sentence(said(text)) for text in written)])

    def act(self, text: str, turns: Turns) -> Action:
        """The answer, or a search for the sentence."""
        newest = sentence(text)
        if found := _ANSWER.search(newest):
            return Answer(found[1].strip().rstrip("."))
        if turns.last_call:
            return Answer(" ".join(sentence(said(each)) for each in turns.texts))
        return Call("search", newest)


def sentence(text: str) -> str:
    """The first sentence of a text, at most its first line; initials and a few titles end none."""
    line = line_of(text)
    found = _SENTENCE.match(line)
    return found[0].strip() if found else line


def build(config: Config) -> IRCoT:
    """Make the protocol."""
    return IRCoT(config)


__all__ = ["Config", "build"]
