"""What a search protocol is, and the pure parser that protocols made of tags share.

A protocol says how a question is put, what the policy may write, and how search results are shown. Invariants:

- actions are read from what the policy wrote, and a finished trajectory from its generated segments alone: prompts and
  passages are never parsed, so a passage that contains a tag is data;
- the first closing action tag ends the turn; characters after it (the rest of the token that completed it) are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from search_agent.protocols.actions import Action, Answer, Call, Invalid, Turns
from verl.trajectory import Segment, Trajectory


@dataclass(frozen=True, slots=True)
class Reading:
    """What a trajectory says, read from its generated segments."""

    answer: str | None
    """The answer that ended the episode; None if it ended without one."""
    searches: tuple[str, ...]
    """Queries that were carried out (an observation follows them), in order."""
    thoughts: tuple[str, ...]
    refinements: tuple[str, ...]
    """What the policy noted down after a search was answered; empty for a protocol without such a step. Before it there
    is nothing to refine: what stands there is a guess."""
    format_valid: bool
    """Whether every generated segment has the protocol's blocks in the protocol's order and nothing else."""


class Span(NamedTuple):
    """A part of a text and what it is."""

    kind: str
    """``think``, ``search``, ``answer``, or whatever else the protocol knows."""
    begin: int
    end: int


class Passage(Protocol):
    """The part of a retrieved document that a protocol shows."""

    @property
    def title(self) -> str: ...

    @property
    def text(self) -> str: ...


class SearchProtocol(Protocol):
    """A plug-in of ``search_agent.protocols``. Stateless: one instance serves all episodes."""

    @property
    def name(self) -> str: ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings of every turn, where the policy writes on after an observation."""

    @property
    def message_stop(self) -> tuple[str, ...]:
        """Stop strings where each turn is a message of its own, which the policy may also end itself."""

    @property
    def prefill(self) -> str:
        """What each assistant turn is begun with (``<think>``): part of the prompt, never of what is trained."""

    @property
    def system(self) -> str | None:
        """A system message, which needs a chat framing; None if the prompt is all there is."""

    def prompt(self, question: str) -> str:
        """The text that opens an episode: the whole prompt, or the user message under a chat framing."""

    def parse(self, turns: Turns) -> Action:
        """The action of the newest turn. Whether it is an answer must not depend on ``turns.question``."""

    def last_call(self, question: str) -> str | None:
        """What the policy is told, at the end of an observation, when one turn is left; None says nothing."""

    def beside(self, call: Call, passages: Sequence[Passage]) -> str | None:
        """What asks the policy, in a chat of one turn beside the episode's own, what to do with what a call found; None
        shows it at once."""

    def parse_beside(self, text: str) -> Call | Invalid:
        """The call that such a turn makes; what it finds is shown in the episode."""

    def observe_results(self, passages: Sequence[Passage]) -> list[str]:
        """Opening, one piece a passage, closing: the environment may leave out whole passages, from the last."""

    def observe_invalid(self, reason: str) -> str:
        """What the policy is told after an invalid action, before it tries again."""

    def read(self, trajectory: Trajectory) -> Reading:
        """Read a finished trajectory. Never raises: a trajectory that says nothing has an empty reading."""

    def spans(self, text: str) -> list[Span]:
        """What the parts of one generated text are, tags included, in order and apart; for the eye only."""


def closing_action(text: str, tags: Sequence[str]) -> tuple[str, int, int] | None:
    """The closing tag that comes first, as (tag, where it begins, where it ends); None if no tag is closed."""
    found = [(text.find(f"</{tag}>"), tag) for tag in tags]
    begin, tag = min(((begin, tag) for begin, tag in found if begin >= 0), default=(-1, ""))
    return (tag, begin, begin + len(f"</{tag}>")) if begin >= 0 else None


def parse_action(text: str, tools: Sequence[str] = ("search",)) -> Action:
    """Read one turn: the innermost block of the action tag that closes first. A tool's tag is its name."""
    closing = closing_action(text, (*tools, "answer"))
    if closing is None:
        first = ", ".join(f"<{tool}>" for tool in tools)
        return Invalid(f"neither {first} nor <answer> is closed")
    tag, end, _ = closing
    begin = text.rfind(f"<{tag}>", 0, end)
    if begin < 0:
        return Invalid(f"</{tag}> without <{tag}>")
    content = text[begin + len(f"<{tag}>") : end].strip()
    if tag == "answer":
        return Answer(content)
    return Call(tag, content) if content else Invalid(_EMPTY.get(tag, "the request is empty"))


_EMPTY = {"search": "the query is empty"}


def contents(text: str, tag: str) -> list[str]:
    """The stripped contents of every closed block of ``tag``, in order."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    found, position = [], 0
    while (begin := text.find(opening, position)) >= 0:
        begin += len(opening)
        if (end := text.find(closing, begin)) < 0:  # nor after any later opening: a policy may write thousands
            break
        found.append(text[begin:end].strip())
        position = end + len(closing)
    return found


def block_names(text: str, tags: Sequence[str]) -> list[str] | None:
    """The blocks that ``text`` is made of; None unless it is closed, unnested blocks with only white space between."""
    names = "|".join(tags)
    block = re.compile(rf"\s*<({names})>((?:(?!</?(?:{names})>).)*)</\1>", re.DOTALL)
    found, position = [], 0
    while match := block.match(text, position):
        found.append(match.group(1))
        position = match.end()
    return found if not text[position:].strip() else None


# What may follow the closing tag where the policy ends its turn itself: one end-of-turn marker such as <|im_end|>.
_END_OF_TURN = re.compile(r"(<[^<>\s]+>)?")


class NothingBeside:
    """The part of a protocol that opens no chat beside the episode's own."""

    def beside(self, call: Call, passages: Sequence[Passage]) -> str | None:
        """Nothing: what was found is shown at once."""
        return None

    def parse_beside(self, text: str) -> Call | Invalid:
        """Nothing was asked."""
        return Invalid("nothing was asked")


class TagProtocol(NothingBeside):
    """The reading that all protocols of tags share; a protocol adds its texts and its order of blocks."""

    blocks: tuple[str, ...] = ("think", "search", "answer")
    """Tags of the blocks that the policy writes."""
    results: str = "documents"
    """Tag that search results are shown in; the policy must not write it."""
    message_stop: tuple[str, ...] = ()
    prefill: str = ""
    tools: tuple[str, ...] = ("search",)
    """Tags, among ``blocks``, of what calls a tool of that name."""

    def parse(self, turns: Turns) -> Action:
        """The action in the newest turn's text."""
        return parse_action(turns.newest, self.tools)

    def last_call(self, question: str) -> str | None:
        """Nothing: the policy is not told that turns run out."""
        return None

    def final_answer(self, text: str) -> str | None:
        """The answer to score, from the contents of the answer block; None if they hold none."""
        return text

    def spans(self, text: str) -> list[Span]:
        """The blocks that the policy writes; one that is never closed goes on to the end, and one that was begun for
        the policy starts with the text."""
        names = "|".join(self.blocks)
        blocks = [Span(m[1], *m.span()) for m in re.finditer(rf"<({names})>.*?(?:</\1>|\Z)", text, re.DOTALL)]
        begun = re.match(rf"(?:(?!</?(?:{names})>).)*</({names})>", text, re.DOTALL)
        return [Span(begun[1], *begun.span()), *blocks] if begun else blocks

    def in_order(self, names: Sequence[str], after_results: bool) -> bool:
        """Whether one turn's blocks, the last of which is its action, are the protocol's."""
        return list(names[:-1]) == ["think"] and names[-1] in (*self.tools, "answer")

    def read(self, trajectory: Trajectory) -> Reading:
        """Read a trajectory by its generated segments."""
        trajectory = trajectory.main
        turns = trajectory.turns
        texts = [turn.text for turn in turns]
        told = {segment.turn + 1 for segment in trajectory.segments if segment.last_call}
        actions = [self.parse(Turns(texts[: i + 1], last_call=i in told)) for i in range(len(texts))]
        observations = [segment for segment in trajectory.segments if segment.kind == "observation"]
        observed = {s.turn for s in observations if all(call.failure is None for call in s.calls)}
        searches = {i: a.request for i, a in enumerate(actions) if isinstance(a, Call) and a.tool == "search"}
        answered = [i for i in searches if i in observed]
        empty = {s.turn for s in observations if s.calls and not any(call.results for call in s.calls)}
        shown = [i for i in answered if i not in empty]
        heads = [self.head(turn) for turn in turns]
        return Reading(
            answer=self.final_answer(actions[-1].text) if actions and isinstance(actions[-1], Answer) else None,
            searches=tuple(searches[i] for i in answered),
            thoughts=tuple(thought for head in heads for thought in contents(head, "think")),
            refinements=tuple(note for head in self.refining(heads, shown) for note in contents(head, "refine")),
            format_valid=self.format_valid(turns, actions),
        )

    def refining(self, heads: Sequence[str], shown: Sequence[int]) -> Sequence[str]:
        """The turns that may refine, of all turns, given whose searches showed passages: those after the first."""
        return heads[shown[0] + 1 :] if shown else ()

    def format_valid(self, turns: Sequence[Segment], actions: Sequence[Action]) -> bool:
        """Calls, then an answer, every turn in the protocol's order."""
        if not actions or not isinstance(actions[-1], Answer):
            return False
        if not all(isinstance(action, Call) for action in actions[:-1]):
            return False
        return all(self._turn_valid(turn, after_results=i > 0) for i, turn in enumerate(turns))

    def head(self, turn: Segment) -> str:
        """The turn's text up to the end of its action; all of it if there is none."""
        closing = self._closing(turn.text)
        return turn.text[: closing[2]] if closing else turn.text

    def _closing(self, text: str) -> tuple[str, int, int] | None:
        return closing_action(text, (*self.tools, "answer"))

    def _turn_valid(self, turn: Segment, *, after_results: bool) -> bool:
        head = self.head(turn)
        tail = turn.text[len(head) :]
        if turn.finish_reason == "stop":  # what follows shares the last token with the stop string, and is ignored
            if self._closing(tail) is not None:  # unless the stop string is not the first action
                return False
        elif not _END_OF_TURN.fullmatch(tail.strip()):
            return False
        names = block_names(head, (*self.blocks, self.results))
        return self.in_order(names, after_results) if names else False
