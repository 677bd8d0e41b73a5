"""What a rollout is made of: an engine that generates, an environment that answers, a reward that scores.

    await environment.start() -> Prompt
    while (turn := environment.next_turn()):
        generation  = await engine.generate(ids so far, turn, seed)
        observation = await environment.observe(generation)       # may search; other episodes go on meanwhile
    environment.outcome() -> how it ended

The loop stands in ``verl.rollout.episode``; ``search_agent`` implements Environment and RewardFunction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from verl.data.tasks import Task
from verl.errors import UserError
from verl.trajectory import FinishReason, Outcome, ToolCall, Trajectory


@dataclass(frozen=True, slots=True)
class Prompt:
    """The first segment."""

    token_ids: Sequence[int]
    text: str
    prefill: str = ""
    """The end of ``text`` that begins the policy's turn (``<think>``)."""
    images: tuple[str, ...] = ()
    """What it shows besides: paths or ``data:`` URLs (``Task.images``)."""
    calls: tuple[ToolCall, ...] = ()
    """What was asked before the policy wrote anything, and is shown in it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the environment allows the policy to generate next."""

    max_tokens: int
    """At least 1; already bounded by what is left of the context."""
    stop: tuple[str, ...] = ()
    """Stop strings; the token that completes one is kept whole and is the last one sampled."""
    images: tuple[str, ...] = ()
    """What the prompt shows; an engine for text alone refuses it (``refuse_images``)."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: one setting for a whole batch of episodes."""

    temperature: float = 1.0
    """0 is greedy. Log-probs returned are those of the distribution that was sampled from."""
    top_p: float = 1.0
    top_k: int = -1


@dataclass(frozen=True, slots=True)
class Generation:
    """What one turn produced."""

    token_ids: Sequence[int]
    text: str
    """What ``token_ids`` decode to, whole: the stop string and whatever else its last token holds included."""
    logprobs: Sequence[float]
    versions: Sequence[int]
    finish_reason: FinishReason
    stop: str | None = None
    """The stop string that ended it, if one did."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What the environment appends before the next turn."""

    token_ids: Sequence[int]
    text: str
    calls: tuple[ToolCall, ...] = ()
    prefill: str = ""
    """The end of ``text`` that begins the policy's turn, as for a prompt."""
    last_call: bool = False
    """Whether it tells the policy that one turn is left."""
    anew: bool = False
    """Whether it is a whole new prompt, and all that the policy's next turn reads (``Segment.anew``)."""
    beside: bool = False
    """Whether it opens a chat of one turn beside the episode's own (``Segment.beside``)."""


class Environment(Protocol):
    """One episode's world. An instance serves one episode; it holds what is shared (tokenizer, client) by reference."""

    async def start(self) -> Prompt:
        """The first segment. Called once, first; other episodes go on meanwhile.

        Raises UserError if it leaves no room in the context, InfrastructureError as ``observe`` does.
        """

    def next_turn(self) -> Turn | None:
        """What may be generated next, or None when the episode is over."""

    async def observe(self, generation: Generation) -> Observation | None:
        """Take in what was generated; None if nothing is to be appended.

        Raises InfrastructureError when the outside failed for good: the episode is then aborted and never trained on.
        """

    def outcome(self) -> tuple[Outcome, str]:
        """How it ended, with one line about why (may be empty). Valid once ``next_turn`` returned None."""


class Engine(Protocol):
    """Generates tokens with the newest weights it was given."""

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        """Continue ``token_ids``. Raises InfrastructureError if the engine died; every waiting call fails with it."""


def refuse_images(turn: Turn) -> None:
    """What an engine for text alone asks first. Raises UserError if the prompt shows images."""
    if turn.images:
        raise UserError(
            f"a task shows {len(turn.images)} images ({turn.images[0][:60]}) and the engine reads text alone: drop the "
            "column images, or the tasks that have them"
        )


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward function says of one trajectory."""

    reward: float
    parts: dict[str, float] = field(default_factory=dict)
    """Named numbers for the records and metrics, averaged over a batch."""
    turn_gains: tuple[float, ...] | None = None
    """What each turn brought by itself (for search: the share of the evidence that it newly found); None where the
    task does not let that be measured."""


class RewardFunction(Protocol):
    """Scores a finished trajectory by its segments. Pure: the same input gives the same score."""

    def __call__(self, task: Task, trajectory: Trajectory) -> Score:
        """Raises ValueError on a task that it cannot score (no golden answer, say); never returns NaN.

        Raises InfrastructureError if something it asks outside failed: the episode is aborted, not scored.
        """


class Agent(Protocol):
    """A domain as a rollout worker sees it: environments and a reward. ``search_agent.agent`` is one."""

    async def open(self) -> None:
        """Connect to what the environments use; called once, on the worker's event loop."""

    def environment(self, task: Task, split: str) -> Environment:
        """A new episode's environment. ``split`` names the data a task comes from (``train``, ``dev``, ``test``)."""

    async def score(self, task: Task, trajectory: Trajectory) -> Score:
        """See ``RewardFunction``; other episodes go on meanwhile."""

    def stats(self) -> dict[str, float]:
        """Counters since the start, for the metrics."""

    async def close(self) -> None:
        """Release what ``open`` took."""
