"""How texts become the ids of an episode: raw text, or the turns of a chat template.

    plain        the prompt as it is; the policy writes on
    raw          the same, where the prompt holds special tokens and a template of its own
    chat         the prompt as one user message; the policy writes on in the one assistant turn, searches included
    chat_turns   the prompt as a user message; each observation is a user message too, framed with the template's own
                 edge ids (end of turn, header of the next turn)

An assistant turn may be begun for the policy, by the protocol (``prefill``) or by a template whose generation prompt
opens a thought (Qwen3, DeepSeek-R1). Such templates drop the thoughts of earlier turns when they render a conversation;
here what was sampled stays.

Invariants: nothing that was sampled is tokenised again; foreign text (questions, passages) never becomes a special
token; what is built piece by piece has the ids of the template's full rendering of replies without thoughts, checked
once when a framing is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache, partial
from itertools import groupby
from typing import Any, Literal, Protocol

from verl.errors import UserError

FramingKind = Literal["plain", "raw", "chat", "chat_turns"]
Render = Callable[[tuple[str, ...]], str]
"""The template's text of question, reply, result, ... up to where the policy writes."""

_MARKS = ("sleuthquestion", "sleuthreply", "sleuthresult")
_REPLY = "<search> a query </search>"


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used."""

    name_or_path: str
    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> Mapping[str, Any]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        strftime_now: Callable[[str], str],
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Text and the ids it was given."""

    token_ids: list[int]
    text: str


def encode_data(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of foreign text: a special token spelled in it stays ordinary characters."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) if text else []


def encode_markup(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a template's own text: special tokens spelled in it are special tokens."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]) if text else []


def picture_text(tokenizer: Tokenizer, shown: Sequence[int]) -> str:
    """How the ids of pictures are written in a segment's text: each run of one token once."""
    return tokenizer.decode([token for token, _ in groupby(shown)]) if shown else ""


@dataclass(frozen=True)
class Framing:
    """Frames of one tokenizer, made by ``make_framing``. Immutable: shared by all episodes."""

    kind: FramingKind
    tokenizer: Tokenizer
    around_prompt: tuple[str, str] = ("", "")
    around_observation: tuple[str, str] = ("", "")
    """End of the policy's turn and header of the next; end of that and header of the policy's next turn."""
    opening: str = ""
    """What an assistant turn begins with before the policy writes: the end of the text after a prompt, and of the text
    after an observation that is a message."""
    strip: bool = False
    """Whether the template strips the text of a message, so that we must too."""

    @cached_property
    def data_ids(self) -> Callable[[str], list[int]]:
        """``encode_data``, remembering the newest texts: the samples of a task read the same tags and passages."""
        return lru_cache(maxsize=4096)(partial(encode_data, self.tokenizer))

    @property
    def turns_end_themselves(self) -> bool:
        """Whether the policy ends each turn with an end-of-turn token and may act again after it."""
        return self.kind == "chat_turns"

    def prompt(self, text: str, question: str = "", shown: Sequence[int] = ()) -> Piece:
        """The first segment. ``question`` is the foreign part of ``text`` where the rest may hold special tokens;
        ``shown`` are ids of pictures, which stand before the text of the user's message.

        Raises UserError on pictures without a message that could show them.
        """
        if shown and self.kind in ("plain", "raw"):
            raise UserError(f"environment.framing={self.kind} shows no pictures: write chat")
        if self.kind == "plain":  # with what the tokenizer itself puts in front (a BOS token, for models that have one)
            ids = list(self.tokenizer(text, add_special_tokens=True, split_special_tokens=True)["input_ids"])
        elif self.kind == "raw":
            ids = self._raw_ids(text, question)
        else:
            text = text.strip() if self.strip else text
            ids = [*encode_markup(self.tokenizer, self.around_prompt[0]), *shown, *encode_data(self.tokenizer, text)]
            text = picture_text(self.tokenizer, shown) + text
        before, after = self.around_prompt
        if self.opening and after == self.opening and text.endswith(self.opening):
            after = ""  # a ready-made prompt that begins the turn itself
        return Piece([*ids, *encode_markup(self.tokenizer, after)], before + text + after)

    def _raw_ids(self, text: str, question: str) -> list[int]:
        """Ids of a text as its own markup, but for a question that spells a special token: it stays characters."""
        whole = encode_markup(self.tokenizer, text)
        if not question or encode_markup(self.tokenizer, question) == encode_data(self.tokenizer, question):
            return whole
        parts = [encode_markup(self.tokenizer, part) for part in text.split(question)]
        foreign = encode_data(self.tokenizer, question)
        return [token_id for n, part in enumerate(parts) for token_id in ([*foreign, *part] if n else part)]

    def edges(self, last_token_id: int | None) -> tuple[Piece, Piece]:
        """What stands before and after an observation that follows ``last_token_id``.

        An end-of-turn token that the policy sampled is not repeated: it is the policy's, and trained.
        """
        before, after = self.around_observation
        ids = encode_markup(self.tokenizer, before)
        if ids and ids[0] == last_token_id:
            before, ids = before.removeprefix(self.tokenizer.decode(ids[:1])), ids[1:]
        return Piece(ids, before), Piece(encode_markup(self.tokenizer, after), after)


def make_framing(
    kind: FramingKind,
    tokenizer: Tokenizer,
    *,
    system: str | None,
    probe: str,
    prefill: str = "",
    today: date = date(2026, 1, 1),
) -> Framing:
    """Read the template's edges and check them on ``probe``, a prompt such as the episodes will have.

    ``prefill`` begins each assistant turn, unless the template itself begins it so; ``today`` is the day that a
    template prints. Raises UserError, naming the model,
    if there is no chat template, if it refuses the messages, or if ids built piece by piece differ from those of its
    full rendering.
    """
    if kind in ("plain", "raw"):
        if system is not None:
            raise UserError("this protocol has a system message: set framing to chat, or choose its base template")
        return Framing(kind, tokenizer, ("", prefill), opening=prefill)
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template: set framing to plain")
    render = partial(_render, tokenizer, system, today)
    before, after = _edges(tokenizer, render, 1)
    try:
        _, header, turn, reply = _edges(tokenizer, render, 3)
    except UserError:
        if kind == "chat_turns":
            raise
        header, turn, reply = after, "", ""  # a template for one message alone begins no turn that we could tell
    begun = after.removeprefix(header) if after.startswith(header) else ""
    more = "" if begun.strip() == prefill.strip() else prefill
    around_observation = (turn, reply + more) if kind == "chat_turns" else ("", "")
    strip = probe not in render((probe,))
    _check(Framing(kind, tokenizer, (before, after), (turn, reply), begun, strip), render, probe)
    return Framing(kind, tokenizer, (before, after + more), around_observation, begun + more, strip)


def end_of_turn(kind: FramingKind, tokenizer: Tokenizer) -> list[int]:
    """The token that the policy ends a turn with, where each turn is a message; none under the other framings."""
    if kind != "chat_turns":
        return []
    framing = make_framing(kind, tokenizer, system=None, probe=_MARKS[0])
    return encode_markup(tokenizer, framing.around_observation[0])[:1]


def _edges(tokenizer: Tokenizer, render: Render, messages: int) -> list[str]:
    """The template's text around and between so many messages."""
    marks = _MARKS[:messages]
    return _split(render(marks), marks, tokenizer)


def _render(tokenizer: Tokenizer, system: str | None, today: date, texts: tuple[str, ...]) -> str:
    """The template's text of question, reply, result, ... up to where the policy writes."""
    conversation = [{"role": "system", "content": system}] if system is not None else []
    conversation += [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)
    ]
    try:
        return str(
            tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, strftime_now=today.strftime
            )
        )
    except Exception as error:  # a template is a foreign program: whatever it raises, it refused
        raise UserError(f"{tokenizer.name_or_path}: its chat template refused the conversation: {error}") from error


def _split(text: str, marks: tuple[str, ...], tokenizer: Tokenizer) -> list[str]:
    """The template's text between the messages."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise UserError(f"{tokenizer.name_or_path}: its chat template drops or changes messages: use framing plain")
        parts.append(part)
    return [*parts, text]


def _check(framing: Framing, render: Render, probe: str) -> None:
    """Compare ids built piece by piece with the ids of the full rendering: of the prompt, then of two turns."""
    tokenizer, passage = framing.tokenizer, "one passage"
    prompt = framing.prompt(probe)
    same = prompt.token_ids == encode_markup(tokenizer, render((probe,)))
    if framing.kind == "chat_turns":
        # An earlier turn is rendered as if nothing had begun it.
        unbegun = (framing.around_prompt[0], framing.around_prompt[1].removesuffix(framing.opening))
        built = replace(framing, around_prompt=unbegun).prompt(probe).token_ids
        before, after = framing.edges(None)
        built = [*built, *encode_data(tokenizer, _REPLY), *before.token_ids]
        built += [*encode_data(tokenizer, passage), *after.token_ids]
        same = same and built == encode_markup(tokenizer, render((probe, _REPLY, passage)))
    if not same:
        remedy = "chat or plain" if framing.kind == "chat_turns" else "plain"
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template cannot be built turn by turn (it rewrites earlier turns, or "
            f"its tokenizer joins them): set framing to {remedy}"
        )
