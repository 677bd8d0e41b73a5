"""Suggestions for a name that was probably mistyped."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable


def nearest(wrong: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """``"; did you mean X?"`` for the known name closest to ``wrong``, or an empty string if none is close."""
    found = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f"; did you mean {shown(found[0])}?" if found else ""


def sibling_modules(name: str) -> list[str]:
    """Import paths of the modules that stand beside ``name``, in the deepest parent package that exists."""
    parent = name.rpartition(".")[0]
    while parent:
        try:
            package = importlib.import_module(parent)
        except ImportError:
            parent = parent.rpartition(".")[0]
            continue
        return [f"{parent}.{module.name}" for module in pkgutil.iter_modules(getattr(package, "__path__", []))]
    return []
