"""One episode of question answering with search: what may be generated next, and what the world answers.

A state machine around one protocol. Invariants:

- an action is read from the text of the generation just made, never from a prompt or a passage;
- turns, tokens of a turn, tokens of an observation and the context are bounded; an observation that is cut loses whole
  passages, from the last, and keeps its closing tag;
- after ``max_turns`` turns comes one last turn, in which a search is not carried out: it ends without an answer;
- a failing retriever raises InfrastructureError through: it is never shown to the policy as a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from search_agent.protocols.base import Answer, Invalid, Search, SearchProtocol
from search_agent.protocols.framing import Framing, Tokenizer, make_framing
from search_agent.protocols.observation import Shown, show
from search_agent.retrieval.types import SearchResult
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError
from verl.rollout.interfaces import Environment, Generation, Observation, Prompt, Turn
from verl.trajectory import Outcome, ToolCall, ToolResult


class Retriever(Protocol):
    """What answers a query; ``search_agent.retrieval.client.RetrievalClient`` is one."""

    async def search(self, query: str, k: int) -> SearchResult:
        """Up to ``k`` documents, best first. Raises InfrastructureError when it failed for good."""
        ...


@dataclass(frozen=True)
class Config:
    """Bounds of an episode, and how its texts are framed."""

    max_turns: int = 5
    """Turns in which a search is carried out (turns); one last turn, for the answer, comes after them. 5 as AutoRefine
    trains."""
    max_tokens_per_turn: int = 512
    """The most that is generated in one turn (tokens); a turn that reaches it ends the episode as truncated. 512 as
    published."""
    max_observation_tokens: int = 1024
    """The most that one observation adds (tokens); passages that do not fit are left out whole. 1024 because three
    Wikipedia passages do not fit in the 512 published for training."""
    max_prompt_tokens: int = 2048
    """The longest prompt (tokens); a longer one is an error that names the task. 2048 as published."""
    top_k: int = 3
    """Passages asked for in a search (passages). 3 as published."""
    framing: Literal["plain", "chat", "chat_turns"] = "plain"
    """``plain`` is raw text; ``chat`` puts the prompt in one user message and continues raw in the assistant's turn, as
    published for models with a chat template; ``chat_turns`` sends each observation as a user message."""

    def __post_init__(self) -> None:
        for key in ("max_turns", "max_tokens_per_turn", "max_observation_tokens", "max_prompt_tokens", "top_k"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}: it must be at least 1")


def build(
    config: Config,
    *,
    protocol: SearchProtocol,
    tokenizer: Tokenizer,
    retriever: Retriever,
    max_context_tokens: int,
) -> Callable[[Task], Environment]:
    """Check the framing once and return what makes an environment for each task.

    Raises UserError if the framing does not suit the model, or if an observation cannot hold its own tags.
    """
    framing = make_framing(
        config.framing, tokenizer, system=protocol.system, probe=protocol.prompt("who wrote the first one?")
    )
    if show(framing, protocol.observe_results([]), last_token_id=None, limit=config.max_observation_tokens - 1) is None:
        raise UserError(
            f"max_observation_tokens is {config.max_observation_tokens}: the tags around the passages do not fit in it"
        )

    def make(task: Task) -> Environment:
        return SearchEnvironment(task, config, protocol, framing, retriever, max_context_tokens)

    return make


def prompt_text(task: Task, protocol: SearchProtocol) -> str:
    """What opens the task's episodes, before framing: the protocol's words, unless the task brings its own."""
    return protocol.prompt(task.question) if task.prompt is None else task.prompt


def prompt_limit(config: Config, context_tokens: int) -> int:
    """Tokens that a prompt may have in a context of so many: one is left for an answer."""
    return min(config.max_prompt_tokens, context_tokens - 1)


class SearchEnvironment:
    """One episode. Implements ``verl.rollout.interfaces.Environment``."""

    def __init__(
        self,
        task: Task,
        config: Config,
        protocol: SearchProtocol,
        framing: Framing,
        retriever: Retriever,
        max_context_tokens: int,
    ) -> None:
        self._task, self._config, self._protocol, self._framing = task, config, protocol, framing
        self._retriever = retriever
        self._room = max_context_tokens
        """Tokens of the context that are still free."""
        self._turns = 0
        self._left_out = 0
        """Passages that found no room in an observation."""
        self._outcome: tuple[Outcome, str] | None = None

    def start(self) -> Prompt:
        """Render the prompt, unless the task brings its own. Raises UserError if it is too long."""
        prompt = self._framing.prompt(prompt_text(self._task, self._protocol))
        length, limit = len(prompt.token_ids), prompt_limit(self._config, self._room)
        if length > limit:
            raise UserError(
                f"task {self._task.id}: its prompt has {length} tokens and {limit} are allowed: "
                "raise max_prompt_tokens and the context length, or drop the task"
            )
        self._room -= length
        return Prompt(prompt.token_ids, prompt.text)

    def next_turn(self) -> Turn | None:
        """The next turn's bound and stop strings; None when the episode is over."""
        if self._outcome is not None:
            return None
        stop = () if self._framing.turns_end_themselves else self._protocol.stop
        return Turn(min(self._config.max_tokens_per_turn, self._room), stop)

    async def observe(self, generation: Generation) -> Observation | None:
        """Carry out the turn's action; None when it ended the episode.

        Raises InfrastructureError if the retriever failed for good or the engine gave the turn up.
        """
        if generation.finish_reason == "aborted":
            raise InfrastructureError("the engine gave up the turn")
        self._room -= len(generation.token_ids)
        self._turns += 1
        last_id = generation.token_ids[-1] if len(generation.token_ids) else None
        action = self._protocol.parse(generation.text)
        if isinstance(action, Answer):
            self._outcome = ("finished", "")
        elif (end := self._cannot_continue(generation, action)) is not None:
            self._outcome = end
        else:
            return await self._respond(action, last_id)
        return None

    def outcome(self) -> tuple[Outcome, str]:
        """How it ended; passages that were left out on the way are mentioned."""
        if self._outcome is None:
            raise RuntimeError("the episode is still running")
        outcome, reason = self._outcome
        if self._left_out:
            note = f"{self._left_out} passages did not fit into an observation"
            reason = f"{reason}; {note}" if reason else note
        return outcome, reason

    def _cannot_continue(self, generation: Generation, action: Search | Invalid) -> tuple[Outcome, str] | None:
        """Why the episode ends without an answer, if it does."""
        if isinstance(action, Invalid):
            if generation.finish_reason == "length":
                return "truncated", f"turn {self._turns} reached its token limit without an action"
            if generation.finish_reason == "end_of_turn" and not self._framing.turns_end_themselves:
                return "finished", f"the policy ended its turn without an answer: {action.reason}"
        if self._turns > self._config.max_turns:
            return "truncated", f"no answer within {self._config.max_turns} turns and the last one"
        return None

    async def _respond(self, action: Search | Invalid, last_id: int | None) -> Observation | None:
        """Search, or say what was wrong; None if the context has no room for that and one more token."""
        if isinstance(action, Invalid):
            return self._append(self._show([self._protocol.observe_invalid(action.reason)], last_id), ())
        if self._show(self._protocol.observe_results([]), last_id) is None:
            return self._append(None, ())  # before the search: its result could not be shown
        result = await self._retriever.search(action.query, self._config.top_k)
        shown = self._show(self._protocol.observe_results(result.documents), last_id)
        visible = result.documents[: shown.passages] if shown else ()
        self._left_out += len(result.documents) - len(visible)
        call = ToolCall(
            tool="search",
            request=action.query,
            results=tuple(ToolResult(document.id, document.score, document.title) for document in visible),
            latency_s=result.latency_s,
            cached=result.cached,
        )
        return self._append(shown, (call,))

    def _show(self, pieces: list[str], last_id: int | None) -> Shown | None:
        limit = min(self._config.max_observation_tokens, self._room - 1)
        return show(self._framing, pieces, last_token_id=last_id, limit=limit)

    def _append(self, shown: Shown | None, calls: tuple[ToolCall, ...]) -> Observation | None:
        if shown is None:
            self._outcome = ("truncated", "the context is full")
            return None
        self._room -= len(shown.piece.token_ids)
        return Observation(shown.piece.token_ids, shown.piece.text, calls)
