"""What ``mkdocs build --strict`` would refuse, without mkdocs: pages that no menu names, links that lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def in_menu(entries: Any) -> list[str]:
    """The pages of a menu, from top to bottom."""
    if isinstance(entries, str):
        return [entries]
    inner = entries if isinstance(entries, list) else entries.values()
    return [page for entry in inner for page in in_menu(entry)]


def test_every_page_is_in_the_menu_once() -> None:
    menu = in_menu(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == PAGES


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), "README.md", "CONTRIBUTING.md"])
def test_every_link_leads_to_a_file(page: str) -> None:
    file = ROOT / page
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text())
    lost = [link for link in links if "://" not in link and not (file.parent / link).exists()]
    assert lost == []
    if page.startswith("docs/"):
        inside = [(file.parent / link).resolve() for link in links if "://" not in link]
        assert [str(path) for path in inside if not path.is_relative_to(DOCS)] == [], "the site holds docs/ alone"


def test_every_module_of_the_reference_exists() -> None:
    for name in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE):
        module = ROOT / name.replace(".", "/")
        assert module.with_suffix(".py").exists() or module.parent.with_suffix(".py").exists(), name
