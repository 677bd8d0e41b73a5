"""Plain data in, frozen dataclasses out: the one place where a configuration is checked against its types.

Invariants: an unknown key, a missing key and a wrong type are never let through; all faults of a configuration are
found before anything is raised, and each is one line with its dotted key and a remedy. A plug-in that is not selected
has no keys: only the module named under ``plugin`` is imported, and only its ``Config`` is known.

Standard library only, so that a configuration error answers at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from verl.config.nearest import nearest, sibling_modules
from verl.errors import UserError, refuse

T = TypeVar("T")

_SCALARS: tuple[type, ...] = (bool, int, float, str)


@dataclass(frozen=True)
class Plugin:
    """A part chosen by import path. In YAML: a mapping with ``plugin: some.module`` and that module's own keys."""

    module: str
    """Import path of a module with ``Config`` (a frozen dataclass) and ``build(config, ...)``."""
    config: Any
    """An instance of the module's ``Config``."""

    def build(self, *args: Any, **context: Any) -> Any:
        """Make the part: calls the module's ``build`` with its configuration first. Heavy imports happen here."""
        return importlib.import_module(self.module).build(self.config, *args, **context)


class _Invalid:
    """What a value that has a fault is replaced with until all faults are known."""


_INVALID = _Invalid()


def build(cls: type[T], data: Mapping[str, Any], path: str = "") -> T:
    """Build the dataclass ``cls`` and everything nested in it from plain data.

    ``path`` is the dotted key of ``data`` itself, for messages. Raises UserError with one line a fault, all of them.
    """
    faults: list[str] = []
    built = _dataclass(cls, data, path, faults)
    refuse(faults)
    return built  # type: ignore[no-any-return]


def to_dict(value: Any) -> Any:
    """The plain data that ``build`` would read back as ``value``: every key spelled out, JSON and YAML ready."""
    if isinstance(value, Plugin):
        return {"plugin": value.module, **to_dict(value.config)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def load_plugin(name: str) -> ModuleType:
    """Import a plug-in module. Raises UserError if there is none of that name, or if it is not a plug-in."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise UserError(f"plug-in {name} needs the package {error.name}, which is not installed") from error
        raise UserError(f"there is no module {name}{nearest(name, sibling_modules(name))}") from error
    except (ImportError, SyntaxError, ValueError) as error:
        raise UserError(f"plug-in {name} cannot be imported: {error}") from error
    lacking = [part for part in ("Config", "build") if not hasattr(module, part)]
    if lacking:
        raise UserError(f"{name} is not a plug-in: it has no {' and no '.join(lacking)}")
    return module


def join(path: str, key: object) -> str:
    """The dotted key of ``key`` under ``path``."""
    return f"{path}.{key}" if path else str(key)


def type_name(hint: Any) -> str:
    """How a type is written for a person: ``int``, ``'a' or 'b'``, ``list of str``, ``float or null``."""
    if hint is None or hint is NoneType:
        return "null"
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (Union, UnionType):
        return " or ".join(type_name(arg) for arg in args)
    if origin in (tuple, list):
        return "list of " + " and ".join(type_name(arg) for arg in args if arg is not Ellipsis)
    if hint is Plugin:
        return "plug-in"
    if dataclasses.is_dataclass(hint) or origin in (dict, Mapping):
        return "group of keys"
    return "path" if hint is Path else getattr(hint, "__name__", str(hint))


def _dataclass(cls: Any, data: Any, path: str, faults: list[str]) -> Any:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        return _wrong(cls, data, path, faults)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    before = len(faults)
    for key in data:
        if key not in fields:
            faults.append(_unknown(key, path, list(fields)))
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            value = values[name] = _value(hints[name], data[name], join(path, name), faults)
            allowed = math.inf if "inf" in field.metadata else None
            if isinstance(value, float) and not math.isfinite(value) and value != allowed:
                faults.append(f"{join(path, name)}: {value} is not a value here; write a number")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            faults.append(f"{join(path, name)}: missing; write {join(path, name)}=... ({type_name(hints[name])})")
    if len(faults) > before:
        return _INVALID
    try:
        return cls(**values)
    except UserError as error:
        faults.extend(_rooted(line, path, fields) for line in str(error).splitlines())
        return _INVALID


def _rooted(line: str, path: str, fields: Mapping[str, Any]) -> str:
    """A dataclass knows only its own keys, or the last part of its path as well: give the line its full dotted key."""
    outer = path.split(".") if path else []
    named = re.split(r"[^\w.]", line, maxsplit=1)[0].split(".")
    for start in range(len(outer) + 1):
        shared = len(outer) - start
        if named[:shared] == outer[start:] and named[shared : shared + 1] and named[shared] in fields:
            return ".".join([*outer[:start], line])
    return f"{path}: {line}" if path else line


def _unknown(key: object, path: str, known: list[str]) -> str:
    hint = nearest(str(key), known, lambda name: join(path, name))
    listing = "" if hint else f"; known here: {', '.join(sorted(known)) or 'no keys at all'}"
    return f"{join(path, key)}: no such key{hint}{listing}; remove or rename it"


def _value(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _union(hint, value, path, faults)
    if origin is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        suggestion = nearest(str(value), [str(arg) for arg in args])
        faults.append(f"{path}: {value!r} is not allowed{suggestion}; write {type_name(hint)}")
        return _INVALID
    if origin in (tuple, list):
        return _sequence(hint, value, path, faults)
    if origin in (dict, Mapping):
        return _mapping(hint, value, path, faults)
    if hint is Plugin:
        return _plugin(value, path, faults)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, path, faults)
    return _scalar(hint, value, path, faults)


def _scalar(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if (hint in _SCALARS and type(value) is hint) or (hint is NoneType and value is None):
        return value
    if hint is not Path and hint is not NoneType and hint not in _SCALARS:
        raise TypeError(f"{path}: a configuration field cannot have the type {hint}")
    return _wrong(hint, value, path, faults)


def _wrong(hint: Any, value: Any, path: str, faults: list[str]) -> _Invalid:
    remedy = f"write {type_name(hint)}"
    if hint is int and isinstance(value, float) and value.is_integer():
        remedy = f"write {int(value)}"
    elif hint is str and isinstance(value, bool | int | float):
        remedy = f"quote it: '{path}=\"{value}\"'"
    shown = "null" if value is None else f"{value!r} ({type(value).__name__})"
    faults.append(f"{path or 'the configuration'}: expected {type_name(hint)}, got {shown}; {remedy}")
    return _INVALID


def _union(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    members = [member for member in get_args(hint) if member is not NoneType]
    if value is None and len(members) < len(get_args(hint)):
        return None
    if len(members) == 1:
        return _value(members[0], value, path, faults)
    groups = [kind for kind in members if dataclasses.is_dataclass(kind) or get_origin(kind) in (dict, Mapping)]
    alike = groups if isinstance(value, Mapping) else [kind for kind in members if kind not in groups]
    if len(alike) == 1:  # so that its own faults are told
        return _value(alike[0], value, path, faults)
    for member in members:
        tried: list[str] = []
        result = _value(member, value, path, tried)
        if not tried:
            return result
    return _wrong(hint, value, path, faults)


def _sequence(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        return _wrong(hint, value, path, faults)
    origin, args = get_origin(hint), get_args(hint)
    fixed = origin is tuple and Ellipsis not in args
    if fixed and len(value) != len(args):
        faults.append(
            f"{path}: expected {len(args)} values, got {len(value)}; write [{', '.join(map(type_name, args))}]"
        )
        return _INVALID
    kinds = args if fixed else (args[0],) * len(value)
    items = [
        _value(kind, item, f"{path}[{index}]", faults)
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return tuple(items) if origin is tuple else items


def _mapping(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, Mapping):
        return _wrong(hint, value, path, faults)
    kind = get_args(hint)[1]
    return {str(key): _value(kind, item, join(path, key), faults) for key, item in value.items()}


def _plugin(value: Any, path: str, faults: list[str]) -> Any:
    if isinstance(value, Plugin):
        return value
    if not isinstance(value, Mapping):
        return _wrong(Plugin, value, path, faults)
    name = value.get("plugin")
    if not isinstance(name, str):
        faults.append(f"{join(path, 'plugin')}: missing; write {join(path, 'plugin')}=some.module")
        return _INVALID
    try:
        module = load_plugin(name)
    except UserError as error:
        faults.append(f"{join(path, 'plugin')}: {error}")
        return _INVALID
    keys = {key: item for key, item in value.items() if key != "plugin"}
    config = _dataclass(module.Config, keys, path, faults)
    return _INVALID if config is _INVALID else Plugin(name, config)
