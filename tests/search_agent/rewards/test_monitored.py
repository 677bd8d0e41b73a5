"""Metrics of one's own beside a reward."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from search_agent.protocols import search_r1
from search_agent.rewards import f1, monitored
from search_agent.rewards.pool import pool_config
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.trajectory import Trajectory


@dataclass(frozen=True)
class Config:
    """The monitor's settings."""

    name: str = "turns_taken"
    """What it calls its number."""


@pytest.fixture
def module() -> Any:
    made = ModuleType("my_monitor")
    made.Config = Config  # type: ignore[attr-defined]
    made.build = lambda config, protocol: lambda task, episode: {config.name: episode.num_turns}  # type: ignore[attr-defined]
    sys.modules["my_monitor"] = made
    yield made
    del sys.modules["my_monitor"]


def scored(name: str) -> dict[str, float]:
    config = monitored.Config(Plugin(f1.__name__, f1.Config()), (Plugin("my_monitor", Config(name)),))
    reward = monitored.build(config, search_r1.build(search_r1.Config()))
    episode = Trajectory("t", 0)
    episode.append_prompt([1], "q")
    episode.append_generated([2], "<think> a </think> <answer> mara </answer>", [0.0], [0], "stop")
    episode.outcome = "finished"
    return dict(reward(Task("t", "q", ("mara",)), episode).parts)


def test_a_monitor_measures_beside_the_reward(module: Any) -> None:
    parts = scored("turns_taken")
    assert parts["turns_taken"] == 1
    assert parts["f1"] == 1


def test_a_name_that_is_taken_is_refused(module: Any) -> None:
    with pytest.raises(ValueError, match="monitor my_monitor measures f1"):
        scored("f1")


def test_monitors_run_in_the_pool(module: Any) -> None:
    config = monitored.Config(Plugin(f1.__name__, f1.Config()), ())
    assert pool_config(Plugin(monitored.__name__, config)) is not None
