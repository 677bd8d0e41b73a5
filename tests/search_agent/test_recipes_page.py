"""Every key that docs/recipes.md names exists; that its recipes do is held by ``tests/test_presets.py``."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from search_agent.config import RunConfig
from search_agent.console.help import presets
from search_agent.retrieval.config import ServerConfig
from verl.config.document import keys

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
RECIPES = sorted(set(re.findall(r"recipe=([\w.]*\w)", PAGE)))


def test_the_page_names_every_recipe_of_the_three_systems() -> None:
    presets = {path.stem for path in (Path(__file__).parents[2] / "configs" / "recipe").glob("*.yaml")}
    ours = {name for name in presets if name.startswith(("autorefine", "search_r1", "research"))}
    assert ours <= set(RECIPES)


def known_keys() -> set[str]:
    """Every key of a run, of the plug-ins that presets choose, and of a retrieval server."""
    found = {key.path for key in keys(RunConfig)}
    found |= {key.path for key in keys(ServerConfig)}
    for preset in presets():
        if preset.plugin:
            found |= {key.path for key in keys(importlib.import_module(preset.plugin).Config, preset.group)}
    return found


def our_side() -> list[str]:
    """The right-hand cells of the tables that translate other programs."""
    tables = PAGE[PAGE.index("## Coming from AutoRefine") :]
    rows = [line for line in tables.splitlines() if line.startswith("| `")]
    return [line.rstrip("| ").rpartition(" | ")[2] for line in rows]


def test_every_key_that_another_program_is_translated_to_exists() -> None:
    known = known_keys()
    groups = {key.partition(".")[0] for key in known if "." in key}
    named = {
        match
        for cell in our_side()
        for word in re.findall(r"`([^`]+)`", cell)
        for match in re.findall(r"(?<![\w./])([a-z_]+(?:\.[a-z_]+)+)(?=$|[=\s])", word)
        if match.partition(".")[0] in groups and not match.endswith(".json")
    }
    assert len(named) > 50
    assert named - known == set()


def test_every_module_and_script_that_is_named_exists() -> None:
    root = Path(__file__).parents[2]
    words = " ".join(our_side())
    for module in set(re.findall(r"python -m ([a-z_.]+)", words)):
        path = root / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for script in set(re.findall(r"bash ([\w/.]+\.sh)", words)):
        assert (root / script).exists(), script
