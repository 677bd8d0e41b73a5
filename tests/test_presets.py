"""Every preset composes, its parts fit together, and its plan holds on the machine it is sized for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search_agent.config import RunConfig
from search_agent.planning.plan import make_plan
from verl.config.build import build
from verl.config.compose import CONFIG_DIR, compose
from verl.errors import UserError, refuse
from verl.model_shape import EMBEDDED, ModelShape, read_shape
from verl.rollout.interfaces import Sampling

RECIPES = sorted(path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml"))
GROUPS = ("data", "environment", "protocol", "reward")
PAGE = (CONFIG_DIR.parent / "docs" / "recipes.md").read_text()


def recipe(name: str, *overrides: str) -> RunConfig:
    return build(RunConfig, compose("train", [f"recipe={name}", *overrides]))


def shape(config: RunConfig) -> ModelShape:
    return EMBEDDED if config.model == "embedded" else read_shape(config.model)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_passes_its_dry_run(name: str) -> None:
    config = recipe(name)
    assert config.name == name
    plan = make_plan(config, shape(config))
    refuse(plan.problems)
    always = ["processes", "batch", "evaluation", "memory", "steps and disk"]
    assert list(plan.sections) == [*always, *["prediction"] * bool(config.trainer.steps)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_parts_of_a_recipe_fit_together(name: str) -> None:
    config = recipe(name)
    protocol = config.protocol.build()
    config.reward.build(protocol)
    limits = config.environment.config
    turn = limits.max_tokens_per_turn
    one_search = limits.max_prompt_tokens + turn
    if limits.max_turns:
        one_search += limits.max_observation_tokens + turn
    assert one_search <= config.rollout.engine.max_context_tokens
    assert protocol.system is None or limits.framing != "plain"
    episodes = config.trainer.prompts_per_step * config.trainer.samples_per_prompt
    assert episodes % config.learner.updates_per_batch == 0


def test_published_numbers_of_autorefine() -> None:
    config = recipe("autorefine_qwen2.5_3b")
    assert (config.trainer.prompts_per_step, config.trainer.samples_per_prompt, config.trainer.steps) == (256, 5, 300)
    assert config.trainer.optimizer.learning_rate == 1e-6
    assert config.trainer.loss.kl_coefficient == 0.001
    assert config.trainer.loss.kl_estimator == "k3"
    # 1,280 episodes in mini-batches of 256.
    assert config.learner.updates_per_batch == 5
    assert (config.environment.config.max_turns, config.environment.config.top_k) == (5, 3)
    assert config.protocol.config.instruction == "published"
    assert config.cluster.learner_ranks == 8


def test_published_numbers_of_search_r1_with_ppo() -> None:
    for size in ("3b", "7b"):
        config = recipe(f"search_r1_qwen2.5_{size}_ppo")
        trainer = config.trainer
        assert (trainer.prompts_per_step, trainer.samples_per_prompt, trainer.steps) == (512, 1, 1005)
        assert trainer.advantage.name == "gae"
        assert (trainer.kl_reward.coefficient, trainer.loss.kl_coefficient) == (0.001, 0)
        assert (trainer.advantage.gamma, trainer.advantage.lam) == (1, 1)
        # 512 episodes in mini-batches of 256.
        assert config.learner.updates_per_batch == 2
        assert (trainer.optimizer.learning_rate, config.learner.critic.optimizer.learning_rate) == (1e-6, 1e-5)
        assert config.learner.critic.loss.clip == 0.5


def test_published_numbers_of_exsearch() -> None:
    for name in ("qwen2.5_7b", "llama3.1_8b", "mistral_24b"):
        config = recipe(f"exsearch_{name}_instruct")
        assert (config.trainer.advantage.name, config.trainer.loss.name) == ("softmax", "weighted_nll")
        assert (config.trainer.steps, config.warmup.epochs) == (4, 2)
        assert config.warmup.optimizer.learning_rate == config.trainer.optimizer.learning_rate == 2e-6
        # Batches of 256 trajectories, and of 64 in the warm-up.
        episodes = config.trainer.prompts_per_step * config.trainer.samples_per_prompt
        assert (episodes // config.learner.updates_per_batch, config.warmup.sequences_per_step) == (256, 64)
        assert (config.rollout.temperature, config.rollout.top_p, config.environment.config.top_k) == (0.8, 0.95, 3)


def test_published_numbers_of_rare() -> None:
    full, lora, kto = (recipe(f"rare_pubmedqa{kind}") for kind in ("", "_lora", "_kto"))
    for config in (full, lora):
        warmup = config.warmup
        assert (warmup.epochs, warmup.sequences_per_step, warmup.optimizer.learning_rate) == (5, 64, 1e-5)
        assert (warmup.optimizer.schedule, config.trainer.steps, config.retriever) == ("cosine", 0, "none")
        assert config.evaluation.decodings[1].sampling == Sampling(0.95, top_p=0.7, top_k=50)
    assert lora.learner.lora is not None
    assert (lora.learner.lora.rank, lora.learner.lora.alpha, lora.learner.lora.plus_ratio) == (64, 128, 16)
    assert (kto.warmup.epochs, kto.warmup.optimizer.learning_rate) == (3, 5e-6)
    assert (kto.warmup.loss.name, kto.warmup.loss.kto_beta) == ("kto", 0.1)
    pictures = recipe("rare_mmrait")
    assert pictures.warmup.optimizer.learning_rate == 5e-5
    assert pictures.evaluation.decodings[1].sampling == Sampling(0.6, top_p=0.7, top_k=50)
    wide = recipe("rare_pubmedqa_lora", "learner.lora.rank=128")
    refuse(make_plan(wide, shape(wide)).problems)


def test_a_preset_for_one_node_becomes_one_for_four() -> None:
    config = recipe("research_qwen2.5_7b", "hardware=gpu32")
    plan = make_plan(config, shape(config))
    refuse(plan.problems)
    processes = dict(plan.sections["processes"])
    assert processes["GPUs"].startswith("32 ")
    assert processes["Ray"].endswith("16 x (1 CPU + 1 GPU), 8 x (1 CPU + 2 GPU)")


def test_a_preset_on_too_little_memory_is_refused_by_its_plan() -> None:
    config = recipe("research_qwen2.5_7b", "cluster.gpu_memory_gib=20")
    with pytest.raises(UserError, match=r"gpu_memory_share=0\.6 of 20 GiB does not hold the weights"):
        refuse(make_plan(config, shape(config)).problems)


def braces(text: str) -> list[str]:
    """What a shell makes of ``a_{b,c}``."""
    head, opened, rest = text.partition("{")
    if not opened:
        return [text]
    options, _, tail = rest.partition("}")
    return [head + option + end for option in options.split(",") for end in braces(tail)]


def test_the_page_of_recipes_names_exactly_the_presets_there_are() -> None:
    named = {name for spelled in re.findall(r"recipe=([\w.{},]*[\w}])", PAGE) for name in braces(spelled)}
    assert named <= set(RECIPES)
    assert {name for name in RECIPES if "qwen" in name} <= named


@pytest.mark.parametrize(
    "path", sorted(CONFIG_DIR.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}={path.stem}"
)
def test_every_preset_says_where_its_keys_go(path: Path) -> None:
    package = path.read_text().splitlines()[0]
    assert package == f"# @package {path.parent.name}" if path.parent.name in GROUPS else "# @package _global_"
