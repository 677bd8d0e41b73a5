"""A recipe for a CPU takes one GPU where the installed engine computes on GPUs alone, and says so in one line."""

from __future__ import annotations

import pytest

from search_agent.console import machine
from search_agent.console.command import load_config
from search_agent.console.machine import on_this_machine
from search_agent.planning.plan import make_plan
from search_agent.planning.preflight import known_shape


@pytest.fixture
def built_for(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(machine, "engine_needs_gpus", lambda: True)
    monkeypatch.setattr(machine, "local_gpus", lambda: 8)
    return monkeypatch


@pytest.mark.parametrize("words", [[], ["seed=3"], ["recipe=search_r1_mini"], ["-m", "seed=1,2", "reward=em,f1"]])
def test_one_gpu_is_taken_and_told(
    words: list[str], built_for: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_this_machine(words) == [*words, "hardware=gpu1"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("hardware=gpu1: ")


@pytest.mark.parametrize(
    "words",
    [["hardware=gpu8"], ["cluster.gpus_per_process=0"], ["++cluster.placement=shared"], ["recipe=research_qwen2.5_7b"]],
)
def test_what_says_where_stands(
    words: list[str], built_for: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_this_machine(words) == words
    assert capsys.readouterr().err == ""


def test_without_a_gpu_or_with_an_engine_for_the_cpu_nothing_changes(built_for: pytest.MonkeyPatch) -> None:
    built_for.setattr(machine, "local_gpus", lambda: 0)
    assert on_this_machine(["seed=3"]) == ["seed=3"]
    built_for.setattr(machine, "local_gpus", lambda: 1)
    built_for.setattr(machine, "engine_needs_gpus", lambda: False)
    assert on_this_machine(["seed=3"]) == ["seed=3"]


def test_the_quick_start_on_one_gpu_is_in_float32_and_fits() -> None:
    config = load_config(["hardware=gpu1"])
    shape = known_shape(config)
    assert shape is not None
    assert make_plan(config, shape).problems == []
    assert (config.cluster.placement, config.cluster.gpus_per_process) == ("shared", 0.5)
    assert (config.rollout.engine.dtype, config.learner.compute_dtype) == ("float32", "float32")
