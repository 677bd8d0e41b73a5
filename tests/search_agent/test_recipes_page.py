"""Every recipe that docs/recipes.md names composes, and every key it names exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from search_agent.config import RunConfig
from search_agent.help import presets
from search_agent.retrieval.config import ServerConfig
from verl.config.build import build
from verl.config.compose import compose
from verl.config.document import keys

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
RECIPES = sorted(set(re.findall(r"recipe=([\w.]*\w)", PAGE)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_composes_and_its_parts_are_built(recipe: str) -> None:
    config = build(RunConfig, compose("train", [f"recipe={recipe}"]))
    assert config.name == recipe
    protocol = config.protocol.build()
    config.reward.build(protocol)
    assert (protocol.system is None) or config.environment.config.framing != "plain"
    limits = config.environment.config
    turn = limits.max_tokens_per_turn
    one_search = limits.max_prompt_tokens + turn + limits.max_observation_tokens + turn
    context = config.rollout.engine.max_context_tokens
    assert one_search <= context <= config.learner.max_tokens_per_microbatch
    samples = config.trainer.prompts_per_step * config.trainer.samples_per_prompt
    assert samples % config.learner.updates_per_batch == 0


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
