"""Packages that are not installed, taken for granted: so ``--help`` can import what it documents on a bare Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any
from unittest.mock import MagicMock


class _Finder(MetaPathFinder, Loader):
    """Finds every module; in each stands whatever is asked for, and it means nothing."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec:
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock()

    def exec_module(self, module: Any) -> None:
        """Nothing is to be run."""


@contextmanager
def absent_packages() -> Iterator[None]:
    """Inside the block an import that finds nothing succeeds all the same."""
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
