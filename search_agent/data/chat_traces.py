"""Supervised rows that are texts, as trajectories: ``messages`` of a chat, or ``instruction`` and ``predict``.

The policy's are the assistant's turns with the token that ends each; all else is context. Texts are data: a special
token spelled in one stays ordinary characters, and only the template's own text is read as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from typing import Any

from search_agent.protocols.framing import Tokenizer, encode_data, encode_markup, picture_text
from verl.data.pictures import Pictures
from verl.trajectory import Trajectory

_ROLES = ("system", "user", "assistant", "tool")


class ChatReader:
    """Rows in the words of one tokenizer's chat template."""

    def __init__(self, tokenizer: Tokenizer, eos: str | None, today: date, pictures: Pictures | None = None) -> None:
        """``eos`` ends what follows a plain instruction, where the tokenizer has no chat template; ``today`` is the day
        that a template prints; ``pictures`` is how the model reads them, if it does."""
        self._tokenizer = tokenizer
        self._eos = eos
        self._today = today
        self._pictures = pictures
        self._edges = cache(self._rendered_edges)

    def read(self, row: Mapping[str, Any], name: str, images: tuple[str, ...] = ()) -> Trajectory:
        """``images`` are shown before the text of the first message of the user.

        Raises ValueError that says what is wrong with the row.
        """
        if images and (self._pictures is None or not self._tokenizer.chat_template):
            raise ValueError(f"shows {len(images)} pictures, and the model reads text alone")
        if "messages" in row:
            return self._chat(_messages(row["messages"]), name, images)
        messages = [("user", _text(row, "instruction")), ("assistant", _text(row, "predict"))]
        if self._tokenizer.chat_template:
            return self._chat(messages, name, images)
        if not self._eos:
            raise ValueError("the model's tokenizer has neither a chat template nor a token that ends a text")
        trace = Trajectory(name, 0, outcome="finished")
        ids = self._tokenizer(messages[0][1], add_special_tokens=True, split_special_tokens=True)["input_ids"]
        trace.append_prompt(ids, messages[0][1])
        self._write(trace, messages[1][1], self._eos)
        return trace

    def _chat(self, messages: Sequence[tuple[str, str]], name: str, images: tuple[str, ...]) -> Trajectory:
        if not self._tokenizer.chat_template:
            raise ValueError("the model's tokenizer has no chat template")
        edges, strips = self._edges(tuple(role for role, _ in messages))
        trace, text, ids = Trajectory(name, 0, outcome="finished", images=images), "", list[int]()
        shown = self._pictures.ids(images) if self._pictures is not None else []
        for (role, content), before, after in zip(messages, edges[:-1], edges[1:], strict=True):
            rest = self._cut(before)[1] if trace.segments and not text else before
            text, ids = text + rest, [*ids, *encode_markup(self._tokenizer, rest)]
            content = content.strip() if strips else content
            if role == "user":
                text, ids, shown = text + picture_text(self._tokenizer, shown), [*ids, *shown], []
            if role != "assistant":
                text, ids = text + content, [*ids, *encode_data(self._tokenizer, content)]
                continue
            append = trace.append_observation if trace.segments else trace.append_prompt
            append(ids, text)
            self._write(trace, content, self._cut(after)[0])
            text, ids = "", []
        return trace

    def _write(self, trace: Trajectory, text: str, end: str) -> None:
        """A turn of the policy: ``text`` and the markup that ends it. No engine sampled it."""
        ids = [*encode_data(self._tokenizer, text), *encode_markup(self._tokenizer, end)]
        trace.append_generated(ids, text + end, [0.0] * len(ids), [0] * len(ids), "end_of_turn")

    def _cut(self, edge: str) -> tuple[str, str]:
        """What stands after a turn of the policy, as the one token that ends the turn and the rest."""
        end = self._tokenizer.decode(encode_markup(self._tokenizer, edge)[:1])
        return end, edge.removeprefix(end)

    def _rendered_edges(self, roles: tuple[str, ...]) -> tuple[list[str], bool]:
        """The template's text around messages of these roles, one piece more than messages; whether it strips them."""
        marks = [f"sleuthtext{number}end" for number in range(len(roles))]
        conversation = [{"role": role, "content": f" {mark} "} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=False, strftime_now=self._today.strftime
            )
        except Exception as error:  # a template is a foreign program: whatever it raises, it refused
            raise ValueError(f"the model's chat template refuses it ({error})") from error
        strips = f" {marks[0]} " not in text
        edges = []
        for mark in marks:
            edge, found, text = str(text).partition(mark if strips else f" {mark} ")
            if not found:
                raise ValueError("the model's chat template drops or changes messages")
            edges.append(edge)
        return [*edges, text], strips


def _messages(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError("messages: not a list of messages")
    found = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise ValueError(f"messages[{number}]: no message with a role of {', '.join(_ROLES)}")
        found.append((str(message["role"]), _text(message, "content")))
    if found[0][0] == "assistant":
        raise ValueError("messages[0] is the assistant's: something must come before it")
    if not any(role == "assistant" for role, _ in found):
        raise ValueError("messages: no turn of the assistant's")
    return found


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: {'missing' if value is None else 'no text'}")
    return value
