"""The meaning of keys is read from their dataclasses and the docstrings under their fields."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from verl.config.build import Plugin, type_name
from verl.config.document import field_docs, help_text, keys

ROOT = Path(__file__).parents[3]
Mode = Literal["fast", "slow"]


@dataclass(frozen=True)
class Base:
    seed: int = 0
    """Where randomness starts. Any integer will do."""


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    """Share of
    something."""
    bare: int = 1


@dataclass(frozen=True)
class Outer(Base):
    name: str = field(kw_only=True)
    """What it is called."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""
    other: Inner | None = None
    """Nested, or nothing."""
    sizes: tuple[int, ...] = (1, 2)
    """Some sizes."""
    mode: Mode | None = None
    """How."""
    folder: Path = Path("x")
    """Where."""
    part: Plugin = field(default_factory=lambda: Plugin("nowhere", None))
    """A part."""
    files: list[str] = field(default_factory=list)
    """Which."""


def test_docs_follow_fields_and_bases() -> None:
    assert field_docs(Outer)["seed"] == "Where randomness starts. Any integer will do."
    assert field_docs(Inner) == {"rate": "Share of\n    something.", "bare": ""}


def test_every_nested_key_is_listed_with_type_and_default() -> None:
    listed = {key.path: (key.type, key.default) for key in keys(Outer)}
    assert listed == {
        "seed": ("int", "0"),
        "name": ("str", "required"),
        "inner.rate": ("float", "0.5"),
        "inner.bare": ("int", "1"),
        "other": ("group of keys or null", "null"),
        "other.rate": ("float", "0.5"),
        "other.bare": ("int", "1"),
        "sizes": ("list of int", "[1, 2]"),
        "mode": ("'fast' or 'slow' or null", "null"),
        "folder": ("path", "x"),
        "part": ("plug-in", "nowhere"),
        "files": ("list of str", "[]"),
    }
    assert listed["mode"][0] == type_name(Mode | None)


def test_help_shows_the_first_sentence_below_each_key() -> None:
    text = help_text(Outer, "run")
    assert "run.seed=0  (int)\n    Where randomness starts.\n" in text
    assert "Any integer" not in text


def test_help_answers_before_anything_is_installed() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from search_agent.console.help import main; main(['train'])"
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "trainer.steps=60  (int)" in text
    assert "  reward=f1 " in text
    assert "recipe=quickstart" in text
