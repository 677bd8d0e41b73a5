"""Episodes whose prompt is composed anew for every turn, from what was found so far: how methods are played.

The same bounds, tools and outcomes as ``search_agent.environment``, with one difference: a turn reads its own prompt
and nothing before it (``Segment.anew``), as in the published pipelines. Such episodes are for evaluation alone: a
learner reads an episode as one text. Passages that find no room are left out whole, from the last; a task's own context
loses its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import ClassVar

from search_agent import environment
from search_agent.environment import Episodes, SearchEnvironment
from search_agent.methods.base import Method
from search_agent.protocols.actions import Call, Invalid, Say
from search_agent.protocols.base import SearchProtocol
from search_agent.protocols.framing import Piece, Tokenizer, encode_data, make_framing
from search_agent.retrieval.types import Document
from search_agent.tools import search
from search_agent.tools.base import Retriever
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.interfaces import Observation, Prompt, Turn
from verl.trajectory import ToolCall

CONTEXT = "context"
"""Where a task's metadata holds what is to be read for it."""


@dataclass(frozen=True)
class Config(environment.Config):
    """The same keys; a prompt may be ``max_prompt_tokens`` long, and ``max_observation_tokens`` more for each search
    that it shows."""

    plays_alone: ClassVar[bool] = True


class Composed(Episodes):
    """What the episodes of one split share."""

    def __call__(self, task: Task) -> SearchEnvironment:
        """A new episode of a task."""
        return ComposingEnvironment(task, self)


def build(
    config: Config,
    *,
    protocol: SearchProtocol,
    tokenizer: Tokenizer,
    retriever: Retriever,
    max_context_tokens: int,
) -> Composed:
    """Make the tools and the framing. Raises UserError if the protocol composes no prompts."""
    if not isinstance(protocol, Method):
        raise UserError(f"environment.plugin={__name__} plays methods, and protocol {protocol.name} is none")
    probe, today = protocol.prompt("who wrote the first one?"), date.fromisoformat(config.date)
    framing = make_framing(config.framing, tokenizer, system=None, probe=probe, today=today)
    plugins = {"search": Plugin(search.__name__, search.Config()), **config.tools}
    tools = {name: plugin.build(retriever=retriever, top_k=config.top_k) for name, plugin in plugins.items()}
    return Composed(config, protocol, framing, tools, max_context_tokens)


class ComposingEnvironment(SearchEnvironment):
    """One episode of a method."""

    _protocol: Method

    def __init__(self, task: Task, shared: Episodes) -> None:
        super().__init__(task, shared)
        self._context = shared.max_context_tokens
        self._found: list[Document] = []
        """What prompts show, in order."""
        self._searches = 0

    async def start(self) -> Prompt:
        """Search for the question, where the method begins so, and compose the first prompt.

        Raises UserError if the prompt without passages is too long, InfrastructureError as ``observe`` does.
        """
        calls: tuple[ToolCall, ...] = ()
        if self._protocol.shows == "context":
            self._found = [Document("", "", given_context(self._task), 0.0)]
        elif self._protocol.begins_with_search:
            calls = (await self._search(Call("search", self._task.question)),)
        piece, shown = self._compose()
        return Prompt(piece.token_ids, piece.text, self._prefill, self._task.images, _visible(calls, shown))

    def next_turn(self) -> Turn | None:
        """As in any episode; a message of a chat is not stopped at a line's end."""
        turn = super().next_turn()
        chat = self._framing.kind in ("chat", "chat_turns")
        return replace(turn, stop=self._protocol.message_stop) if turn is not None and chat else turn

    async def _respond(self, action: Call | Say | Invalid, last_id: int | None) -> Observation | None:
        """Search, and compose the next prompt. A turn that says nothing would be followed by the same prompt."""
        if not isinstance(action, Call):
            self._outcome = ("finished", "the turn says nothing")
            return None
        if len(self._prompt([]).token_ids) > self._limit(self._searches + 1):  # what was written has filled it
            return self._full()
        record = await self._search(action)
        piece, shown = self._compose()
        return Observation(piece.token_ids, piece.text, _visible((record,), shown), self._prefill, anew=True)

    async def _search(self, call: Call) -> ToolCall:
        documents, record = await self._carry_out(call)
        if self._protocol.shows == "all":
            new = {document.id for document in documents}
            self._found = [*documents, *(document for document in self._found if document.id not in new)]
        else:
            self._found = list(documents)
        self._searches += 1
        return record

    def _compose(self) -> tuple[Piece, set[str]]:
        """The prompt of the next turn, and which passages it shows."""
        limit = self._limit(self._searches)
        passages = list(self._found)
        while len((piece := self._prompt(passages)).token_ids) > limit:
            if not passages:
                raise UserError(
                    f"task {self._task.id}: its prompt has {len(piece.token_ids)} tokens without any document, and "
                    f"{limit} are allowed: raise environment.max_prompt_tokens and the context length, or drop the task"
                )
            if self._protocol.shows == "context":
                cut = self._cut(passages[0], len(piece.token_ids) - limit)
                passages = [cut] if cut.text else []
            else:
                passages.pop()
        self._left_out += len(self._found) - len(passages)
        self._room = self._context - len(piece.token_ids)
        self._prefill = self._framing.opening
        self._told_last = len(self._written) == self._config.max_turns
        return piece, {passage.id for passage in passages}

    def _limit(self, searches: int) -> int:
        """Tokens of a prompt after so many searches: within its bounds, and with room for a turn in the context."""
        config, shown = self._config, searches if self._protocol.shows == "all" else min(1, searches)
        bound = config.max_prompt_tokens + shown * config.max_observation_tokens
        return min(bound, max(self._context - config.max_tokens_per_turn, self._context // 2))

    def _prompt(self, passages: Sequence[Document]) -> Piece:
        return self._framing.prompt(self._protocol.compose(self._task.question, passages, self._written))

    def _cut(self, context: Document, excess: int) -> Document:
        """The context without ``excess`` tokens of its middle, or more; empty if that is all of it."""
        ids = encode_data(self._framing.tokenizer, context.text)
        kept = len(ids) - excess - 1
        if kept < 2:
            return context._replace(text="")
        decode = self._framing.tokenizer.decode
        return context._replace(text=f"{decode(ids[: kept // 2])}\n{decode(ids[len(ids) - kept // 2 :])}")


def given_context(task: Task) -> str:
    """What the task brings to be read. Raises UserError if it brings nothing."""
    context = task.metadata.get(CONTEXT)
    if not isinstance(context, str) or not context.strip():
        raise UserError(f"task {task.id}: its metadata has no {CONTEXT}: method=given reads it; write another method")
    return context


def _visible(calls: tuple[ToolCall, ...], shown: set[str]) -> tuple[ToolCall, ...]:
    """The calls with those results alone that the prompt shows."""
    return tuple(
        replace(call, results=tuple(result for result in call.results if result.id in shown)) for call in calls
    )
