"""Iter-RetGen (arXiv 2305.15294): answer as ``rag`` does, then search for question and answer, and again.

The last round's answer counts; each round reads what its own search found, and nothing of the rounds before it.
FlashRAG's three rounds are ``environment.max_turns=2`` and the last turn.
"""

from __future__ import annotations

from search_agent.methods import rag
from search_agent.methods.base import Action, Answer, Call, Config, Turns


class IterRetGen(rag.Rag):
    """A turn a round."""

    name = "iterretgen"

    def act(self, text: str, turns: Turns) -> Action:
        """The next search, until no round is left."""
        return Answer(text) if turns.last_call else Call("search", f"{turns.question.strip()} {text}")


def build(config: Config) -> IterRetGen:
    """Make the protocol."""
    return IterRetGen(config)


__all__ = ["Config", "build"]
