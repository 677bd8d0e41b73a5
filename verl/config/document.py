"""What a configuration's keys mean, read from source: annotations, defaults, and the docstring under each field.

Nothing is imported and nothing is executed, so that ``--help`` answers before anything is installed. The price is a
plain style of configuration modules, which ``tests/test_tree.py`` asks for anyway: names come from ``from`` imports,
nested dataclasses and ``Literal`` aliases stand at the top of a module.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Key:
    """One key of a configuration, as a person would look it up."""

    path: str
    """Dotted key."""
    type: str
    default: str
    """How the default is written in YAML, or ``required``."""
    doc: str
    """The whole docstring of the field, on one line; empty if there is none."""


@dataclass(frozen=True)
class _Field:
    name: str
    annotation: ast.expr
    default: ast.expr | None
    doc: str


def keys(module: str, name: str, path: str = "") -> Iterator[Key]:
    """Every key under the dataclass ``name`` of ``module``, nested ones included, in the order of the source.

    A plug-in is one key, as its own keys depend on which is selected. ``path`` is put before each key.
    """
    for field, home in _fields(module, name):
        here = f"{path}.{field.name}" if path else field.name
        nested = _nested(field.annotation, home)
        if nested is None or _optional(field.annotation):
            kind = _type(field.annotation, home) if nested is None else "group of keys or null"
            yield Key(here, kind, _default(field.default), " ".join(field.doc.split()))
        if nested is not None:
            yield from keys(*nested, here)


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, inherited ones included; empty where there is none."""
    return {field.name: field.doc for field, _ in _fields(cls.__module__, cls.__name__)}


def help_text(module: str, name: str, path: str = "", width: int = 110) -> str:
    """All keys, one a line with default and type, and the first sentence of what each means under it."""
    lines: list[str] = []
    for key in keys(module, name, path):
        lines.append(f"{key.path}={key.default}  ({key.type})")
        lines += textwrap.wrap(first_sentence(key.doc), width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def first_sentence(text: str) -> str:
    """Text up to the first full stop that ends a sentence."""
    head, stop, _ = " ".join(text.split()).partition(". ")
    return head + "." if stop else head


@cache
def _tree(module: str) -> ast.Module | None:
    """A module of this repository; None for anything else."""
    file = ROOT / (module.replace(".", "/") + ".py")
    return ast.parse(file.read_text()) if file.exists() else None


def _find(name: str, module: str) -> tuple[str, ast.stmt] | None:
    """Where ``name``, as seen in ``module``, is defined: the module and the class or assignment."""
    tree = _tree(module)
    for statement in tree.body if tree else []:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return module, statement
        if isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _find(alias.name, statement.module)
    return None


def _fields(module: str, name: str) -> Iterator[tuple[_Field, str]]:
    """Fields with the module whose names their annotations use; a base class's come first."""
    home, definition = _find(name, module) or (module, None)
    if not isinstance(definition, ast.ClassDef):
        raise ValueError(f"{module} has no class {name}")
    for base in definition.bases:
        yield from _fields(home, ast.unparse(base))
    for statement, following in pairwise([*definition.body, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            literal = following.value if isinstance(following, ast.Expr) else None
            doc = literal.value if isinstance(literal, ast.Constant) and isinstance(literal.value, str) else ""
            yield _Field(statement.target.id, statement.annotation, statement.value, doc), home


def _nested(annotation: ast.expr, module: str) -> tuple[str, str] | None:
    """The dataclass that an annotation names, alone or beside ``None``; a plug-in is none."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id != "Plugin":
            found = _find(node.id, module)
            if found and isinstance(found[1], ast.ClassDef) and found[1].decorator_list:
                return found[0], found[1].name
    return None


def _optional(annotation: ast.expr) -> bool:
    return any(isinstance(node, ast.Constant) and node.value is None for node in ast.walk(annotation))


def _type(annotation: ast.expr, module: str) -> str:
    """An annotation in words: ``int``, ``'a' or 'b'``, ``list of str``, ``float or null``."""
    if isinstance(annotation, ast.BinOp):
        return f"{_type(annotation.left, module)} or {_type(annotation.right, module)}"
    if isinstance(annotation, ast.Constant):
        return "null" if annotation.value is None else repr(annotation.value)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        words = [_type(part, module) for part in inner if not _is_ellipsis(part)]
        outer = ast.unparse(annotation.value)
        return " or ".join(words) if outer == "Literal" else f"list of {' and '.join(words)}"
    if isinstance(annotation, ast.Name):
        found = _find(annotation.id, module)
        if found and isinstance(found[1], ast.Assign):
            return _type(found[1].value, found[0])
    return {"Plugin": "plug-in", "Path": "path"}.get(name := ast.unparse(annotation), name)


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _default(value: ast.expr | None) -> str:
    """A default as it would be written in YAML."""
    if value is None:
        return "required"
    if isinstance(value, ast.Constant):
        words = {None: "null", True: "true", False: "false"}
        return words[value.value] if value.value is None or isinstance(value.value, bool) else str(value.value)
    if isinstance(value, ast.Tuple | ast.List):
        return f"[{', '.join(_default(item) for item in value.elts)}]"
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        factory = given.get("default_factory")
        return _default(given.get("default", factory.body if isinstance(factory, ast.Lambda) else factory))
    text = ast.unparse(value)
    return {"list": "[]", "tuple": "[]", "dict": "{}"}.get(text, text)
