"""One episode of question answering with tools: what may be generated next, and what the world answers.

A state machine around one protocol, and the environment plug-in of every preset. Invariants:

- an action is read from what the policy has written, never from a prompt or a passage;
- turns, tokens of a turn, tokens of an observation and the context are bounded; an observation that is cut loses whole
  passages, from the last, and keeps its closing tag;
- after ``max_turns`` turns comes one last turn, in which no tool is called: it ends without an answer;
- a failing tool raises InfrastructureError through: it is never shown to the policy as a result. A request that a tool
  refuses is the policy's fault: the policy is told, and nothing is aborted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date

from search_agent.protocols.actions import Action, Answer, Call, Invalid, Say, Turns
from search_agent.protocols.base import SearchProtocol
from search_agent.protocols.framing import Framing, FramingKind, Tokenizer, make_framing
from search_agent.protocols.observation import Shown, show
from search_agent.retrieval.types import Document, QueryRefused
from search_agent.tools import search, select
from search_agent.tools.base import BadRequest, Caller, Retriever, Tools
from verl.config.build import Plugin
from verl.data.pictures import Pictures
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError, at_least
from verl.rollout.interfaces import Generation, Observation, Prompt, Turn
from verl.trajectory import Outcome, ToolCall, ToolResult

_PROBE = "who wrote the first one?"


@dataclass(frozen=True)
class Config:
    """Bounds of an episode, how its texts are framed, and its tools."""

    max_turns: int = 5
    """Turns in which a tool is called (turns); one last turn, for the answer, comes after them, so that 0 is one turn
    in all. 5 as AutoRefine trains."""
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
    framing: FramingKind = "plain"
    """``plain`` is text; ``raw`` is text whose special tokens are special, for prompts with a template of their own;
    ``chat`` puts the prompt in one user message and continues raw in the assistant's turn, as published for models with
    a chat template; ``chat_turns`` sends each observation as a user message."""
    date: str = "2026-01-01"
    """The day that a chat template prints as today (year-month-day). No clock is read: a run that goes on after
    midnight, and an evaluation a month later, have the same prompts."""
    tools: Mapping[str, Plugin] = field(default_factory=dict)
    """What a protocol may call besides ``search`` and ``select``, by name: modules of ``search_agent.tools``, or the
    user's own. One of those names replaces the search of passages, or the choice among them."""

    def __post_init__(self) -> None:
        at_least(self, 0, "max_turns")
        at_least(self, 1, "max_tokens_per_turn", "max_observation_tokens", "max_prompt_tokens", "top_k")
        try:
            date.fromisoformat(self.date)
        except ValueError as error:
            raise UserError(f"date is {self.date}: write a day, such as 2026-01-31") from error

    @property
    def max_policy_tokens(self) -> int:
        """The most that the policy generates in an episode (tokens), the context apart."""
        return (self.max_turns + 1) * self.max_tokens_per_turn

    @property
    def max_episode_tokens(self) -> int:
        """The longest episode (tokens), the context apart."""
        return self.max_prompt_tokens + self.max_policy_tokens + self.max_turns * self.max_observation_tokens


@dataclass(frozen=True)
class Episodes:
    """What the episodes of one split share; calling it makes the environment of a task's next episode."""

    config: Config
    protocol: SearchProtocol
    framing: Framing
    tools: Tools
    max_context_tokens: int
    pictures: Pictures | None = None
    """How the model reads pictures; None if it does not, or where a server does."""

    def __call__(self, task: Task) -> SearchEnvironment:
        """A new episode of a task."""
        return SearchEnvironment(task, self)

    async def open(self) -> None:
        """Connect the tools."""
        for tool in self.tools.values():
            await tool.open()

    async def close(self) -> None:
        """Release what ``open`` took."""
        for tool in self.tools.values():
            await tool.close()


def build(
    config: Config,
    *,
    protocol: SearchProtocol,
    tokenizer: Tokenizer,
    retriever: Retriever,
    max_context_tokens: int,
) -> Episodes:
    """Make the tools, and check the framing once.

    Raises UserError if the framing does not suit the model, or if an observation cannot hold its own tags.
    """
    framing = make_framing(
        config.framing,
        tokenizer,
        system=protocol.system,
        probe=protocol.prompt(_PROBE),
        prefill=protocol.prefill,
        today=date.fromisoformat(config.date),
    )
    pieces = with_last_call(protocol.observe_results([]), protocol.last_call(_PROBE))
    if config.max_turns and show(framing, pieces, last_token_id=None, limit=config.max_observation_tokens - 1) is None:
        raise UserError(
            f"max_observation_tokens is {config.max_observation_tokens}: the tags around the passages do not fit in it"
        )
    plugins = {
        "search": Plugin(search.__name__, search.Config()),
        "select": Plugin(select.__name__, select.Config()),
        **config.tools,
    }
    tools = {name: plugin.build(retriever=retriever, top_k=config.top_k) for name, plugin in plugins.items()}
    return Episodes(config, protocol, framing, tools, max_context_tokens, Pictures.of(tokenizer.name_or_path))


def prompt_text(task: Task, protocol: SearchProtocol) -> str:
    """What opens the task's episodes, before framing: the protocol's words, unless the task brings its own."""
    return protocol.prompt(task.question) if task.prompt is None else task.prompt


def prompt_limit(max_prompt_tokens: int, context_tokens: int) -> int:
    """Tokens that a prompt may have in a context of so many: one is left for an answer."""
    return min(max_prompt_tokens, context_tokens - 1)


def with_last_call(pieces: list[str], words: str | None) -> list[str]:
    """An observation's pieces with the last call at their end, inside the closing piece: it is never left out."""
    return [*pieces[:-1], pieces[-1] + words] if words else pieces


class SearchEnvironment:
    """One episode. Implements ``verl.rollout.interfaces.Environment``."""

    def __init__(self, task: Task, shared: Episodes) -> None:
        self._task, self._config, self._tools = task, shared.config, shared.tools
        self._protocol, self._framing, self._pictures = shared.protocol, shared.framing, shared.pictures
        self._context = self._room = shared.max_context_tokens
        """Tokens of the context that are still free."""
        self._written: list[str] = []
        self._prefill = ""
        """What the next turn was begun with."""
        self._caller = Caller(task)
        self._told_last = False
        self._choosing: int | None = None
        """While the policy is asked in a chat beside this one: the tokens that its turn there may have."""
        self._last_id: int | None = None
        """The last token of the newest turn."""
        self._left_out = 0
        """Passages that found no room in an observation."""
        self._outcome: tuple[Outcome, str] | None = None

    async def start(self) -> Prompt:
        """Render the prompt, unless the task brings its own. Raises UserError if it is too long."""
        shown = self._pictures.ids(self._task.images) if self._pictures is not None and self._task.images else []
        prompt = self._framing.prompt(prompt_text(self._task, self._protocol), self._task.question, shown)
        length, limit = len(prompt.token_ids), prompt_limit(self._config.max_prompt_tokens, self._room)
        if length > limit:
            raise UserError(
                f"task {self._task.id}: its prompt has {length} tokens and {limit} are allowed: "
                "raise max_prompt_tokens and the context length, or drop the task"
            )
        self._room -= length
        self._prefill = self._framing.opening
        return Prompt(prompt.token_ids, prompt.text, self._prefill, self._task.images)

    def next_turn(self) -> Turn | None:
        """The next turn's bound and stop strings; None when the episode is over."""
        if self._outcome is not None:
            return None
        if self._choosing is not None:
            return Turn(min(self._config.max_tokens_per_turn, self._choosing), self._protocol.message_stop)
        stop = self._protocol.message_stop if self._framing.turns_end_themselves else self._protocol.stop
        return Turn(min(self._config.max_tokens_per_turn, self._room), stop, self._task.images)

    async def observe(self, generation: Generation) -> Observation | None:
        """Carry out the turn's action; None when it ended the episode.

        Raises InfrastructureError if a tool failed for good or the engine gave the turn up.
        """
        if generation.finish_reason == "aborted":
            raise InfrastructureError("the engine gave up the turn")
        if self._choosing is not None:
            self._choosing = None
            return await self._respond(self._protocol.parse_beside(generation.text), self._last_id)
        self._room -= len(generation.token_ids)
        self._written.append(self._prefill + generation.text)
        self._last_id = last_id = generation.token_ids[-1] if len(generation.token_ids) else None
        action = self._protocol.parse(Turns(self._written, self._task.question, self._told_last))
        if isinstance(action, Answer):
            self._outcome = ("finished", "")
            return await self._conclude(action.call)
        if (end := self._cannot_continue(generation, action)) is not None:
            self._outcome = end
            return None
        return await self._respond(action, last_id)

    def outcome(self) -> tuple[Outcome, str]:
        """How it ended; passages that were left out on the way are mentioned."""
        if self._outcome is None:
            raise RuntimeError("the episode is still running")
        outcome, reason = self._outcome
        if self._left_out:
            note = f"{self._left_out} passages did not fit into an observation"
            reason = f"{reason}; {note}" if reason else note
        return outcome, reason

    def _cannot_continue(self, generation: Generation, action: Action) -> tuple[Outcome, str] | None:
        """Why the episode ends without an answer, if it does."""
        if isinstance(action, Invalid):
            if generation.finish_reason == "length":
                return "truncated", f"turn {len(self._written)} reached its token limit without an action"
            if generation.finish_reason == "end_of_turn" and not self._framing.turns_end_themselves:
                return "finished", f"the policy ended its turn without an answer: {action.reason}"
        if len(self._written) > self._config.max_turns:
            others = f"{self._config.max_turns} turns and the last one" if self._config.max_turns else "the one turn"
            return "truncated", f"no answer within {others}"
        return None

    async def _conclude(self, call: Call | None) -> Observation | None:
        """Carry out the call that goes with the answer, and record it; nothing is shown any more."""
        if call is None:
            return None
        _, record = await self._carry_out(call)
        return Observation([], "", (record,))

    async def _respond(self, action: Call | Say | Invalid, last_id: int | None) -> Observation | None:
        """Call the tool, or say what is to be said; None if the context has no room for that and one more token."""
        if isinstance(action, Say):
            return self._append([action.text], last_id, last_call=False)
        if isinstance(action, Invalid):
            return self._append([self._protocol.observe_invalid(action.reason)], last_id)
        if self._show(self._protocol.observe_results([]), last_id, last_call=True) is None:
            return self._full()  # before the call: its result could not be shown
        documents, record = await self._carry_out(action)
        if record.failure is not None:
            return self._append([self._protocol.observe_invalid(record.failure)], last_id, record)
        return self._ask_beside(action, documents, record) or self._append(
            self._protocol.observe_results(documents), last_id, record
        )

    def _ask_beside(self, call: Call, documents: tuple[Document, ...], record: ToolCall) -> Observation | None:
        """The chat that the protocol opens about what was found, with as many passages as its context has room for."""
        for count in range(len(documents), 0, -1):
            words = self._protocol.beside(call, documents[:count])
            if words is None:
                return None
            prompt = self._framing.prompt(words)
            room = self._context - len(prompt.token_ids)
            if room >= min(self._config.max_tokens_per_turn, self._context // 2):
                self._choosing = room
                results = record.results[:count]
                prefill = self._framing.opening
                return Observation(
                    prompt.token_ids, prompt.text, (replace(record, results=results),), prefill, beside=True
                )
        return None

    async def _carry_out(self, call: Call) -> tuple[tuple[Document, ...], ToolCall]:
        """What a call finds, and its record; a request that is refused finds nothing."""
        try:
            if (tool := self._tools.get(call.tool)) is None:
                raise BadRequest(f"there is no tool {call.tool}")
            result = await tool.call(call.request, self._caller)
        except (BadRequest, QueryRefused) as refusal:
            return (), ToolCall(call.tool, call.request, failure=str(refusal))
        found = tuple(ToolResult(document.id, document.score, document.title) for document in result.documents)
        return result.documents, ToolCall(
            call.tool, call.request, found, result.latency_s, result.cached, facts=result.facts
        )

    def _append(
        self, pieces: list[str], last_id: int | None, record: ToolCall | None = None, *, last_call: bool = True
    ) -> Observation | None:
        """The pieces as an observation, and of the record what is visible; None if the context has no room for them."""
        shown = self._show(pieces, last_id, last_call=last_call)
        if shown is None:
            return self._full()
        self._room -= len(shown.piece.token_ids)
        calls: tuple[ToolCall, ...] = ()
        if record is not None:
            self._left_out += len(record.results) - shown.passages
            calls = (replace(record, results=record.results[: shown.passages]),)
        self._told_last = last_call and self._last_words() is not None
        self._prefill = self._framing.opening if self._framing.turns_end_themselves else ""
        return Observation(shown.piece.token_ids, shown.piece.text, calls, self._prefill, self._told_last)

    def _show(self, pieces: list[str], last_id: int | None, *, last_call: bool) -> Shown | None:
        limit = min(self._config.max_observation_tokens, self._room - 1)
        whole = with_last_call(pieces, self._last_words() if last_call else None)
        return show(self._framing, whole, last_token_id=last_id, limit=limit)

    def _last_words(self) -> str | None:
        """What the protocol says before the last turn, if that is the next one."""
        is_next = len(self._written) == self._config.max_turns
        return self._protocol.last_call(self._task.question) if is_next else None

    def _full(self) -> Observation | None:
        self._outcome = ("truncated", "the context is full")
        return None
