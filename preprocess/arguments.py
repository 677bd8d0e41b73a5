"""``key=value`` arguments of the commands in this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, get_origin, get_type_hints

import yaml

from verl.config.build import build
from verl.errors import UserError

T = TypeVar("T")


def parse(cls: type[T], arguments: Sequence[str]) -> T:
    """Build the dataclass ``cls`` from ``key=value`` arguments; a list is written ``key=a,b``.

    Raises UserError with one line for each argument that is not of that form, or else for each wrong key or value.
    """
    wrong = [f"{text}: write key=value" for text in arguments if "=" not in text]
    if wrong:
        raise UserError("\n".join(wrong))
    hints = get_type_hints(cls)
    pairs = dict(text.split("=", 1) for text in arguments)
    return build(cls, {key: _value(hints.get(key), text) for key, text in pairs.items()})


def _value(hint: object, text: str) -> object:
    if hint is str:
        return text
    if get_origin(hint) is tuple:
        return [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    return yaml.safe_load(text)
