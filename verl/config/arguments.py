"""``key=value`` arguments of the small commands, built into a configuration; the large ones read presets (``compose``).

A value is JSON where it can be read as such (numbers, ``true``, ``null``, lists), and a word otherwise; a field that
holds text or a path takes every word as it stands, and a list may be written ``key=a,b``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from verl.config.build import build
from verl.config.document import help_text
from verl.errors import UserError, refuse

T = TypeVar("T")

USER_ERROR_STATUS = 2


def parse(cls: type[T], arguments: Sequence[str]) -> T:
    """The dataclass ``cls`` from ``key=value`` words (``group.key=value`` for a nested one); the last of a key counts.

    ``--help`` prints what each key means and exits. Raises UserError with one line for each word that is not of that
    form, or else for each wrong key or value.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(help_text(cls))
        raise SystemExit(0)
    refuse(f"{word}: write key=value; keys: {', '.join(get_type_hints(cls))}" for word in arguments if "=" not in word)
    tree: dict[str, Any] = {}
    for word in arguments:
        key, _, text = word.partition("=")
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise UserError(f"{word}: {group} has a value already; it cannot be a group of keys as well")
        node[name] = _value(_hint(cls, [*groups, name]), text)
    return build(cls, tree)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run an entry point: a UserError is one line and exit status 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR_STATUS)


def _hint(cls: Any, names: Sequence[str]) -> Any:
    """The type of a nested field; None where there is no such field (``build`` says so) or where a plug-in has it."""
    for name in names:
        classes = [kind for kind in _kinds(cls) if dataclasses.is_dataclass(kind)]
        cls = get_type_hints(classes[0]).get(name) if classes else None
    return cls


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a value may be of, null apart."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(member for member in members if member is not NoneType)


def _value(hint: Any, text: str) -> Any:
    kinds = _kinds(hint)
    if text == "null" and NoneType in get_args(hint):
        return None
    if all(kind in (str, Path) for kind in kinds):
        return text
    lists = [kind for kind in kinds if get_origin(kind) in (tuple, list)]
    if lists and not text.startswith("["):
        return [_value(get_args(lists[0])[0], part.strip()) for part in text.split(",") if part.strip()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [part.strip() for part in text.strip("[]").split(",")] if lists else text
