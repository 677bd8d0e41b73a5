"""``method=`` as keys: what it stands for, under a recipe and under a run's own configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_agent.console.command import load_config, results_config
from search_agent.evaluate import evaluated_config
from search_agent.evaluation.choices import METHODS, chosen
from search_agent.methods import composing
from search_agent.planning.preflight import config_faults
from verl.config.compose import to_yaml
from verl.errors import UserError


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"agent"}))
@pytest.mark.parametrize("recipe", ["quickstart", "research_mini", "exsearch_mini"])
def test_a_method_takes_the_place_of_the_protocol_and_keeps_the_recipes_bounds(method: str, recipe: str) -> None:
    given = ["model=embedded", f"recipe={recipe}"]
    before, config = evaluated_config(given), evaluated_config(chosen([*given, f"method={method}"]))
    assert config.protocol.build().name == method
    assert config.environment.module == composing.__name__
    assert config.reward.module == "search_agent.rewards.em"
    assert config.environment.config.top_k == before.environment.config.top_k
    assert config.environment.config.max_turns == {"ircot": 4, "iterretgen": 2}.get(method, 0)
    assert (config.retriever == "none") == (method in ("direct", "given"))


def test_a_run_is_played_by_a_method_under_its_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "best_dev").mkdir()
    (tmp_path / "config.yaml").write_text(to_yaml(results_config(load_config(["recipe=search_r1_mini", "seed=5"]))))
    config = evaluated_config(chosen([f"model={tmp_path}", "method=ircot"]))
    assert (config.protocol.build().name, config.seed) == ("ircot", 5)


def test_what_the_user_names_stays_theirs() -> None:
    assert chosen(["seed=1"]) == chosen(["seed=1", "method=agent"]) == ["seed=1"]
    found = chosen(["method=ircot", "environment.max_turns=7", "reward=f1"])
    assert found.count("environment.max_turns=7") == 1
    assert not {"environment.max_turns=4", "reward=em"} & set(found)
    with pytest.raises(UserError, match=r"method=irc: no such method; did you mean ircot\?"):
        chosen(["method=irc"])
    with pytest.raises(UserError, match="leave protocol=research out"):
        chosen(["method=rag", "protocol=research"])


def test_a_method_cannot_be_trained_on() -> None:
    config = load_config(["protocol=rag", "environment.plugin=search_agent.methods.composing"])
    assert "environment.plugin=search_agent.methods.composing is for evaluation: it cannot be trained on" in (
        config_faults(config)
    )
