"""Presets and overrides become one dict, or one line that names the preset or key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.config.compose import compose, config_hash, expand_grid, last_value, parse, quoted, to_yaml
from verl.errors import UserError


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    (tmp_path / "reward").mkdir()
    (tmp_path / "recipe").mkdir()
    (tmp_path / "train.yaml").write_text(
        "defaults:\n  - reward: em\n  - _self_\n  - recipe: null\nseed: 0\nsize:\n  steps: 3\n"
    )
    (tmp_path / "open.yaml").write_text("data: ???\n")
    (tmp_path / "loop.yaml").write_text("a: ${nowhere}\n")
    (tmp_path / "reward" / "em.yaml").write_text("plugin: rewards.em\n")
    (tmp_path / "reward" / "f1.yaml").write_text("plugin: rewards.f1\n")
    (tmp_path / "recipe" / "big_qwen2.5_3b.yaml").write_text("# @package _global_\nsize:\n  steps: 200\n")
    return tmp_path


def line(presets: Path, *overrides: str, name: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        compose(name, overrides, presets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_presets_and_overrides_are_merged(presets: Path) -> None:
    config = compose("train", ["reward=f1", "size.steps=5", "seed=7"], presets)
    assert config == {"reward": {"plugin": "rewards.f1"}, "seed": 7, "size": {"steps": 5}}


def test_a_recipe_changes_keys_of_the_whole_config(presets: Path) -> None:
    assert compose("train", ["recipe=big_qwen2.5_3b"], presets)["size"] == {"steps": 200}


def test_a_group_that_the_preset_does_not_choose_is_added_after_the_others(presets: Path) -> None:
    (presets / "hardware").mkdir()
    (presets / "hardware" / "big.yaml").write_text("# @package _global_\nsize:\n  steps: 9\n")
    (presets / "site").mkdir()
    (presets / "site" / "here.yaml").write_text("disk: x\n")
    config = compose("train", ["reward=f1", "hardware=big", "site=here"], presets)
    assert (config["size"], config["site"]) == ({"steps": 9}, {"disk": "x"})
    assert "hardware=bi: no such preset; did you mean big?" in line(presets, "hardware=bi")


def test_all_wrong_choices_are_told_at_once(presets: Path) -> None:
    with pytest.raises(UserError) as caught:
        compose("train", ["reward=f2", "recipe=bg", "seed=1,2"], presets)
    assert [text.partition(":")[0] for text in str(caught.value).splitlines()] == ["reward=f2", "recipe=bg", "seed=1,2"]


def test_an_option_that_there_is_not_is_answered_with_those_there_are(presets: Path) -> None:
    assert line(presets, "--hlp").endswith("the options are --help and -m, and keys are written without dashes")


def test_a_key_that_no_preset_mentions_is_passed_on(presets: Path) -> None:
    config = compose("train", ["learner.optimizer.learning_rate=1e-4", "+extra=x", "reward.scale=2"], presets)
    assert config["learner"] == {"optimizer": {"learning_rate": 1e-4}}
    assert config["extra"] == "x"
    assert config["reward"] == {"plugin": "rewards.em", "scale": 2}


def test_an_unknown_choice_names_the_nearest(presets: Path) -> None:
    assert "reward=f2: no such preset; did you mean f1?; there are: em, f1" in line(presets, "reward=f2")
    assert "recipe=big_qwen2.5_3: no such preset; did you mean big_qwen2.5_3b?" in line(presets, "recipe=big_qwen2.5_3")
    assert "config=trian: no such preset; did you mean train?" in line(presets, name="trian")


def test_an_override_that_cannot_be_read_is_shown(presets: Path) -> None:
    assert line(presets, "steps").startswith("steps: cannot be read")
    assert line(presets, "a={b").startswith("a={b: cannot be read")


def test_several_values_outside_a_grid_are_refused(presets: Path) -> None:
    assert "write -m" in line(presets, "seed=1,2")


def test_a_value_left_open_is_named(presets: Path) -> None:
    assert line(presets, name="open") == "data: has no value; write data=..."


def test_an_interpolation_that_leads_nowhere_is_one_line(presets: Path) -> None:
    assert "nowhere" in line(presets, name="loop")


def test_a_grid_is_every_combination_in_order() -> None:
    assert expand_grid(["reward=em,f1", "x=3", "seed=1,2"]) == [
        ["reward=em", "x=3", "seed=1"],
        ["reward=em", "x=3", "seed=2"],
        ["reward=f1", "x=3", "seed=1"],
        ["reward=f1", "x=3", "seed=2"],
    ]
    assert expand_grid([]) == [[]]


def test_yaml_keeps_the_order_of_keys() -> None:
    assert to_yaml({"b": 1, "a": {"c": None}}) == "b: 1\na:\n  c: null\n"


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers() | st.text(max_size=3), min_size=2))
def test_the_hash_depends_on_values_and_not_on_their_order(data: dict[str, int | str]) -> None:
    backwards = dict(reversed(list(data.items())))
    assert config_hash({"x": data}) == config_hash({"x": backwards})
    first = next(iter(data))
    assert config_hash({"x": data}) != config_hash({"x": {**data, first: "another value"}})


@pytest.mark.parametrize(
    "text", ["a", "sp dir/par(v2)", "o'hara", "it's\\", "\\'", "a,b", "x=[1]{2}", '"', "\\\\", "ünï"]
)
def test_a_quoted_text_is_read_back_as_it_stands(text: str) -> None:
    assert parse([f"run_dir={quoted(text)}"])[0].value() == text
    assert last_value([f"run_dir={quoted(text)}"], "run_dir") == text


def test_a_value_that_a_command_reads_itself_may_be_quoted_or_not() -> None:
    assert last_value(["model=a", "seed=1", "model='runs/my run'"], "model") == "runs/my run"
    assert last_value(["model=runs/x (2), y"], "model") == "runs/x (2), y"
    assert last_value(["seed=1"], "model") is None
