"""Every command that the README and the docs show, with how its block is marked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BEGINS = re.compile(r"(\w+=\S+ +)*(bash |python[\d.]* -m |\.venv/bin/|export |PROCEDURE=|curl |uv |pip )")
_MARK = re.compile(r"<!-- *((?:gpu|cluster|network|long)(?:, *\w+)*) *-->")


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    text: str
    """Without its comment, on one line."""
    marks: frozenset[str]
    """What it needs besides two cores: of the HTML comment before its block."""

    @property
    def words(self) -> list[str]:
        """As a shell splits it, optional parts (``[index=DIR]``) and dots left out."""
        plain = re.sub(r"\[[^\]]*\]|(?<=\s)\.\.\.(?=\s|$)", "", self.text)
        return shlex.split(plain)


def commands() -> list[Command]:
    """All of them, each once a page."""
    return list(dict.fromkeys(command for page in PAGES for command in _of(page)))


def _of(page: Path) -> Iterator[Command]:
    name = page.relative_to(ROOT).as_posix()
    for marks, lines in _blocks(page.read_text()):
        joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
        for line in joined.splitlines():
            if _BEGINS.match(line):
                yield Command(name, re.split(r"\s+#", line)[0].strip(), marks)


def _blocks(text: str) -> Iterator[tuple[frozenset[str], list[str]]]:
    """Code blocks: fenced ones without a language or of a shell's, and indented ones, with their marks."""
    marks: frozenset[str] = frozenset()
    lines, block, fence = iter([*text.splitlines(), ""]), list[str](), ""
    for line in lines:
        if line.startswith("```"):
            fence = line.strip("` ")
            inside = []
            for inner in lines:
                if inner.startswith("```"):
                    break
                inside.append(inner)
            if fence in ("", "bash", "sh"):
                yield marks, inside
            marks = frozenset()
        elif line.startswith("    "):
            block.append(line[4:])
        elif line.strip():
            if block:
                yield marks, block
                block, marks = [], frozenset()
            found = _MARK.fullmatch(line.strip())
            marks = frozenset(re.split(r", *", found[1])) if found else frozenset()
    if block:
        yield marks, block
