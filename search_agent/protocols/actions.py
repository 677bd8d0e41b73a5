"""What a turn may ask for, and what a protocol reads it from. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """The policy asks a tool for something; a search is ``Call("search", query)``."""

    tool: str
    """Its name in the environment's ``tools``."""
    request: str


@dataclass(frozen=True, slots=True)
class Say:
    """The policy is told something without a call: the next instruction of a conversation, say."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The policy answers; the episode is over."""

    text: str
    call: Call | None = None
    """Carried out when the episode has ended, and recorded for the reward: what was found is not shown."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """The turn holds no action that can be carried out."""

    reason: str


Action = Call | Say | Answer | Invalid


@dataclass(frozen=True, slots=True)
class Turns:
    """What the policy has written so far: all that an action is read from. The last turn is the one to read."""

    texts: Sequence[str]
    """Each turn's text, from the first; a turn that was begun for the policy (``prefill``) is whole here."""
    question: str = ""
    """The task's question, for instructions that repeat it; empty where a finished trajectory is read again."""
    last_call: bool = False
    """Whether the policy was told, before its last turn, that turns have run out (``SearchProtocol.last_call``)."""

    @property
    def newest(self) -> str:
        """The turn to read."""
        return self.texts[-1]
