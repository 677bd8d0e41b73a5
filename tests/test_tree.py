"""The rules of the tree: who may import whom, and what every module and configuration key owes its reader."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from search_agent.config import RunConfig
from verl.config.document import field_docs

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("verl", "search_agent", "preprocess", "bench")
MAX_LINES = 400
FRAMEWORKS = ("ray", "vllm", "hydra", "omegaconf")

# Room: what none of its modules imports, not even inside a function.
NEVER = {
    "verl": ("search_agent", "preprocess", "bench"),
    "verl/algorithms": (*FRAMEWORKS, "transformers", "numpy"),
    "verl/learner": (*FRAMEWORKS, "verl.sync", "verl.rollout", "verl.cluster", "verl.trainer"),
    "verl/data": FRAMEWORKS,
    "search_agent": ("preprocess", "bench"),
}
# Package: the only places that import it. One engine adapter, one place that knows Ray.
ONLY = {
    "vllm": ("verl/rollout/engine", "verl/rollout/worker_extension", "verl/sync", "bench/engine"),
    "ray": ("verl/cluster", "search_agent/retrieval/server/fleet"),  # the fleet places server processes on nodes
    "hydra": ("verl/config/compose.py",),
}
# What a configuration mistake must not wait for.
HEAVY = {"torch", "vllm", "ray", "transformers", "bm25s", "pandas", "pyarrow", "scipy"}


@dataclass(frozen=True)
class Module:
    """One source file."""

    path: Path

    @property
    def name(self) -> str:
        """Path from the root, for messages and rules."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def dotted(self) -> str:
        """Import path."""
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def tree(self) -> ast.Module:
        """Syntax tree."""
        return _parse(self.path)

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and full name of everything imported, also inside functions; what only types need is left out."""
        skipped = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(self.tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.lineno, node.module


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def modules() -> tuple[Module, ...]:
    return tuple(Module(path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def config_classes() -> Iterator[tuple[str, type]]:
    """Every configuration dataclass: ``Config`` of a plug-in, or ``...Config``."""
    for module in modules():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and "dataclass" in _decorators(node):
                yield module.name, getattr(importlib.import_module(module.dotted), node.name)


def reachable() -> set[type]:
    """What a run's configuration can hold: ``RunConfig``, every plug-in's ``Config``, and what is nested in them."""
    found: set[type] = set()
    waiting: list[object] = [RunConfig, *(cls for _, cls in config_classes() if cls.__name__ == "Config")]
    while waiting:
        hint = waiting.pop()
        waiting.extend(get_args(hint))
        if isinstance(hint, type) and is_dataclass(hint) and hint not in found:
            found.add(hint)
            waiting.extend(get_type_hints(hint).values())
    return found


def _decorators(node: ast.ClassDef) -> str:
    return " ".join(ast.unparse(decorator) for decorator in node.decorator_list)


@cache
def names_read() -> frozenset[str]:
    """Names of attributes that some code reads, validation in ``__post_init__`` apart."""
    read: set[str] = set()
    for module in modules():
        checks = {
            id(inner)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
            for inner in ast.walk(node)
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in checks:
                read.add(node.attr)
    return frozenset(read)


@pytest.mark.parametrize("room", NEVER)
def test_a_room_never_imports_what_stands_above_or_apart(room: str) -> None:
    found = [
        f"{module.name}:{line} imports {name}"
        for module in modules()
        if module.name.startswith(f"{room}/")
        for line, name in module.imports()
        if any(within(name, package) for package in NEVER[room])
    ]
    assert not found


@pytest.mark.parametrize("package", ONLY)
def test_a_framework_is_known_in_one_place(package: str) -> None:
    found = [
        f"{module.name}:{line} imports {name}"
        for module in modules()
        if not module.name.startswith(ONLY[package])
        for line, name in module.imports()
        if within(name, package)
    ]
    assert not found


def test_algorithms_import_torch_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch"}
    found = [
        f"{module.name}:{line} imports {name}"
        for module in modules()
        if module.name.startswith("verl/algorithms/")
        for line, name in module.imports()
        if name.split(".")[0] not in allowed and not within(name, "verl.algorithms") and name != "verl.errors"
    ]
    assert not found


def test_every_module_says_its_job() -> None:
    silent = [m.name for m in modules() if m.path.read_text().strip() and not ast.get_docstring(m.tree)]
    assert not silent


def test_no_file_is_too_long() -> None:
    assert not [f"{m.name}: {n} lines" for m in modules() if (n := len(m.path.read_text().splitlines())) > MAX_LINES]


def test_no_error_is_swallowed() -> None:
    found = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
                if broad and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body):
                    found.append(f"{module.name}:{node.lineno}")
    assert not found


@pytest.mark.parametrize("text", ["TODO", "FIXME", "trust_remote_code=True", "pickle.load"])
def test_what_must_not_stand_in_the_code(text: str) -> None:
    assert not [module.name for module in modules() if text in module.path.read_text()]


def test_every_configuration_key_is_documented() -> None:
    silent = [
        f"{where} {cls.__name__}.{name}"
        for where, cls in config_classes()
        for name, doc in field_docs(cls).items()
        if not doc
    ]
    assert not silent


def test_every_key_that_a_user_can_set_has_a_reader() -> None:
    unread = [
        f"{cls.__module__}: {name}" for cls in reachable() for name in field_docs(cls) if name not in names_read()
    ]
    assert not unread


def test_configuration_modules_import_nothing_heavy() -> None:
    plugins = {
        str(preset["plugin"])
        for path in (ROOT / "configs").rglob("*.yaml")
        if "plugin" in (preset := yaml.safe_load(path.read_text()) or {})
    }
    configs = {where.removesuffix(".py").replace("/", ".") for where, _ in config_classes()}
    for name in sorted(configs | plugins):
        code = f"import sys, {name}; print(sorted({HEAVY!r} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n", f"{name} imports {done.stdout}"
