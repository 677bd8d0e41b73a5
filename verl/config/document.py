"""What a configuration's keys mean: types and defaults of its dataclasses, and the docstring under each field."""

from __future__ import annotations

import ast
import dataclasses
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from verl.config.build import Plugin, join, to_dict, type_name


@dataclass(frozen=True)
class Key:
    """One key of a configuration, as a person would look it up."""

    path: str
    """Dotted key; ``[]`` stands for each item of a list."""
    type: str
    default: str
    """How the default is written in YAML, or ``required``."""
    doc: str
    """The whole docstring of the field, on one line; empty if there is none."""


def keys(cls: type, path: str = "") -> Iterator[Key]:
    """Every key under a dataclass, nested ones included, in the order of the source.

    A plug-in is one key, as its own keys depend on which is selected. ``path`` is put before each key.
    """
    hints, docs = get_type_hints(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        hint, here = hints[field.name], join(path, field.name)
        if dataclasses.is_dataclass(hint) and hint is not Plugin:
            yield from keys(hint, here)  # type: ignore[arg-type]
            continue
        yield Key(here, type_name(hint), _default(field), " ".join(docs[field.name].split()))
        for inner in get_args(hint):
            if dataclasses.is_dataclass(inner) and inner is not Plugin:
                yield from keys(inner, here if NoneType in get_args(hint) else f"{here}[]")  # type: ignore[arg-type]


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, inherited ones included; empty where there is none."""
    found: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        if dataclasses.is_dataclass(kind):
            found |= _written_docs(kind)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def help_text(cls: type, path: str = "") -> str:
    """All keys, one a line with default and type, and the first sentence of what each means under it."""
    lines: list[str] = []
    for key in keys(cls, path):
        lines.append(f"{key.path}={key.default}  ({key.type})")
        lines += textwrap.wrap(first_sentence(key.doc), 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def first_sentence(text: str) -> str:
    """Text up to the first full stop that ends a sentence."""
    head, stop, _ = " ".join(text.split()).partition(". ")
    return head + "." if stop else head


@cache
def _source(module: str) -> ast.Module:
    return ast.parse(Path(str(sys.modules[module].__file__)).read_text())


def _written_docs(cls: type) -> dict[str, str]:
    """From the source of the class itself: Python keeps no docstring of a field."""
    classes = (node for node in ast.walk(_source(cls.__module__)) if isinstance(node, ast.ClassDef))
    definition = next(node for node in classes if node.name == cls.__name__)
    docs: dict[str, str] = {}
    for statement, following in pairwise([*definition.body, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            literal = following.value if isinstance(following, ast.Expr) else None
            is_text = isinstance(literal, ast.Constant) and isinstance(literal.value, str)
            docs[statement.target.id] = literal.value if is_text else ""  # type: ignore[union-attr, assignment]
    return docs


def _default(field: dataclasses.Field[Any]) -> str:
    """A default as it would be written in YAML."""
    if field.default is not dataclasses.MISSING:
        return _yaml(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else _yaml(field.default_factory())


def _yaml(value: Any) -> str:
    if isinstance(value, Plugin):
        return value.module
    plain = to_dict(value)
    if isinstance(plain, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in plain.items()) + "}"
    if isinstance(plain, list):
        return f"[{', '.join(map(_yaml, plain))}]"
    return "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain)
