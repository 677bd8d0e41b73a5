"""``key=value`` arguments of the retrieval commands, built into their configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

import orjson

from verl.config.build import build
from verl.config.document import help_text
from verl.errors import UserError

T = TypeVar("T")


def parse(cls: type[T], arguments: Sequence[str]) -> T:
    """The dataclass ``cls`` from ``key=value`` words (``group.key=value`` for a nested one).

    ``--help`` prints what each key means and exits. Raises UserError on anything else and on unknown keys.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(help_text(cls.__module__, cls.__name__))
        raise SystemExit(0)
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for word in arguments:
        key, separator, text = word.partition("=")
        if not separator:
            raise UserError(f"{word}: write key=value; keys: {', '.join(hints)}")
        *groups, name = key.split(".")
        into = values
        for group in groups:
            into = into.setdefault(group, {})
        into[name] = _value(text, hints.get(key))
    return build(cls, values)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run an entry point: a UserError is one line and exit status 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _value(text: str, hint: Any) -> Any:
    """Numbers, true, false and null as such where the field can hold them; everything else is text."""
    if hint is str:
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
