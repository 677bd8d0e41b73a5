"""Every recipe that docs/recipes.md names composes, and every key it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search_agent.config import RunConfig
from verl.config.build import build
from verl.config.compose import compose

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
RECIPES = sorted(set(re.findall(r"recipe=([\w.]*\w)", PAGE)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_composes_and_its_parts_are_built(recipe: str) -> None:
    config = build(RunConfig, compose("train", [f"recipe={recipe}"]))
    assert config.name == recipe
    protocol = config.protocol.build()
    config.reward.build(protocol)
    assert (protocol.system is None) or config.environment.framing != "plain"
    limits = config.environment
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
