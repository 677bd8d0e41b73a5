"""Numbers of a step: what searches showed is counted, and a retriever that shows nothing at all is told."""

from __future__ import annotations

import logging

import pytest

from verl.algorithms.control_config import AlarmConfig
from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trainer.alarms import watch
from verl.trainer.state import LoopState
from verl.trainer.summary import RESERVED, longest_wait_s, summarize
from verl.trajectory import ToolCall, ToolResult, Trajectory

FOUND, NOTHING = ToolCall("search", "who", (ToolResult("1", 1.0, "t"),)), ToolCall("search", "who")


def episode(*calls: ToolCall) -> Trajectory:
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], "q")
    trajectory.append_generated([2], "a", [-1.0], [0], "stop")
    if calls:
        trajectory.append_observation([3], "o", calls)
    trajectory.outcome, trajectory.reward = "finished", 0.0
    return trajectory


def step(*episodes: Trajectory) -> list[Group]:
    return [Group(0, Task("t", "q", ("a",)), list(episodes))]


def test_calls_are_counted_and_so_are_those_that_showed_nothing() -> None:
    metrics = summarize(step(episode(FOUND, NOTHING), episode(NOTHING, NOTHING), episode()))
    assert metrics["calls"] == pytest.approx(4 / 3)
    assert metrics["empty_calls"] == 0.75
    assert summarize(step(episode()))["empty_calls"] == 0


def test_what_a_step_waits_for_is_its_longest_episode_and_its_longest_wait() -> None:
    quick, slow = ToolCall("search", "who", latency_s=0.1), ToolCall("search", "where", latency_s=0.4)
    long = episode(quick, slow)  # two at the same time
    long.append_generated([4, 5, 6], "b", [-1.0] * 3, [0] * 3, "stop")
    long.append_observation([7], "o", [quick])
    played = step(episode(quick), long, episode())
    assert summarize(played)["policy_tokens_max"] == 4
    assert longest_wait_s(played) == pytest.approx(0.5)


def test_no_time_is_in_a_summary_as_episodes_played_again_have_to_give_the_same() -> None:
    fast, slow = (step(episode(ToolCall("search", "who", latency_s=s))) for s in (0.1, 3.0))
    assert summarize(fast) == summarize(slow)


@pytest.mark.parametrize(
    ("calls", "told"), [([NOTHING] * 8, True), ([NOTHING] * 7 + [FOUND], False), ([NOTHING] * 7, False), ([], False)]
)
def test_a_step_whose_every_search_shows_nothing_is_told(
    calls: list[ToolCall], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = summarize(step(*[episode(call) for call in calls], episode()))
    with caplog.at_level(logging.WARNING):
        assert ("alarm/empty_calls" in watch(metrics, LoopState(step=6), AlarmConfig())) == told
    assert ("step 7: each of its 8 calls showed nothing" in caplog.text) == told


def with_parts(**parts: float) -> Trajectory:
    trajectory = episode()
    trajectory.reward_parts = parts
    return trajectory


def test_a_part_that_only_some_episodes_have_is_averaged_over_those() -> None:
    metrics = summarize(step(with_parts(em=1.0), with_parts(em=0.0, hops=2.0), with_parts()))
    assert (metrics["em"], metrics["hops"], metrics["n"]) == (0.5, 2.0, 3.0)


def test_counts_are_reserved_names_that_no_part_overwrites() -> None:
    task = Task("t", "q", ("a",))
    counted = summarize([Group(0, task, [episode(FOUND)], episode())])
    assert set(counted) == RESERVED
    claimed = summarize([Group(0, task, [with_parts(**dict.fromkeys(RESERVED, 77.0))], episode())])
    assert 77.0 not in claimed.values()
