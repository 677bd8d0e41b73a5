"""A conversation as ids, for servers that take messages and have no tokenizer here: what ``Framing`` needs of one.

A token is up to four characters, numbered as they come, so that bounds in tokens mean about what they mean elsewhere.
Ids are read back by the object that gave them, and by no other; an episode's text stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ROLES = ("system", "user", "assistant")
_END = "<|end|>"
_MARKUP = [*(f"<|{role}|>" for role in _ROLES), _END]
_SPLIT = re.compile("(" + "|".join(map(re.escape, _MARKUP)) + ")")


class ChatTokens:
    """Implements ``search_agent.protocols.framing.Tokenizer``."""

    name_or_path = "endpoint_api=chat"
    chat_template = "the server's"

    def __init__(self) -> None:
        self._texts = list(_MARKUP)
        self._ids: dict[str, int] = {}

    def __call__(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = False) -> Any:
        """``input_ids`` of a text; an edge of a message that is spelled in foreign text stays characters."""
        parts = [text] if split_special_tokens else _SPLIT.split(text)
        return {"input_ids": [token_id for part in parts for token_id in self._part(part, split_special_tokens)]}

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids that this object gave."""
        return "".join(self._texts[token_id] for token_id in token_ids)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        strftime_now: Callable[[str], str] | None = None,
    ) -> str:
        """Each message between its edges, and the beginning of a reply."""
        messages = "".join(f"<|{message['role']}|>{message['content']}{_END}" for message in conversation)
        return messages + ("<|assistant|>" if add_generation_prompt else "")

    def messages(self, token_ids: Sequence[int]) -> list[dict[str, str]]:
        """The conversation that an episode's ids are; a reply that is begun and empty is left out."""
        found: list[dict[str, str]] = []
        for token_id in token_ids:
            if token_id < len(_ROLES):
                found.append({"role": _ROLES[token_id], "content": ""})
            elif token_id >= len(_MARKUP):
                found[-1]["content"] += self._texts[token_id]
        return found if found[-1]["content"] else found[:-1]

    def _part(self, part: str, foreign: bool) -> list[int]:
        if not foreign and part in _MARKUP:
            return [_MARKUP.index(part)]
        return [self._number(part[i : i + 4]) for i in range(0, len(part), 4)]

    def _number(self, text: str) -> int:
        if text not in self._ids:
            self._ids[text] = len(self._texts)
            self._texts.append(text)
        return self._ids[text]
