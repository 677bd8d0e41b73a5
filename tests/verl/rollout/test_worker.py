"""A rollout worker plays the greedy episode of a group beside its samples, and carries what a score says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from verl.data.tasks import Task
from verl.errors import InfrastructureError
from verl.rollout import play as module
from verl.rollout.groups import GroupRequest
from verl.rollout.interfaces import Sampling, Score
from verl.rollout.progress import Progress
from verl.rollout.worker import RolloutWorker
from verl.trajectory import Trajectory


class FakeAgent:
    def environment(self, task: Task, split: str) -> None:
        return None

    async def score(self, task: Task, trajectory: Trajectory) -> Score:
        return Score(1.0, {"em": 1.0}, (0.5, 0.0))


class FakeEngine:
    def check(self) -> None:
        return None


def make_worker(monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, float]]) -> RolloutWorker:
    async def episode(
        task: Task, key: Any, environment: Any, engine: Any, sampling: Sampling, watcher: Any
    ) -> Trajectory:
        seen.append((key.sample, sampling.temperature))
        return Trajectory(task.id, key.sample, outcome="finished")

    monkeypatch.setattr(module, "run_episode", episode)
    worker: Any = RolloutWorker.__new__(RolloutWorker)
    worker._engine, worker._agent, worker._run_seed, worker._deterministic = FakeEngine(), FakeAgent(), 0, False
    worker._progress = Progress()
    return worker  # type: ignore[no-any-return]


def requests(*, greedy: bool) -> Sequence[GroupRequest]:
    tasks = [Task(name, "q", ("a",)) for name in "ab"]
    return [GroupRequest(n, task, 2, "train", "train", 0, Sampling(), greedy) for n, task in enumerate(tasks)]


async def test_the_greedy_episode_stands_apart_from_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    groups = await make_worker(monkeypatch, seen).run_groups(requests(greedy=True))
    assert sorted(seen) == [(0, 1.0), (0, 1.0), (1, 1.0), (1, 1.0), (2, 0.0), (2, 0.0)]
    for group in groups:
        assert [t.sample for t in group.trajectories] == [0, 1]
        assert group.greedy is not None
        assert group.greedy.sample == 2
        assert [t.sample for t in group.played] == [0, 1, 2]
        assert group.greedy.turn_gains == (0.5, 0.0)


async def test_an_outage_that_the_reward_meets_aborts_its_episode_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def outage(agent: FakeAgent, task: Task, trajectory: Trajectory) -> Score:
        if task.id == "b" and trajectory.sample == 1:
            raise InfrastructureError("the judge does not answer")
        return Score(1.0)

    monkeypatch.setattr(FakeAgent, "score", outage)
    a, b = await make_worker(monkeypatch, []).run_groups(requests(greedy=False))
    assert (a.num_aborted, b.num_aborted) == (0, 1)
    assert b.trajectories[1].reward is None
    assert b.trajectories[1].reason == "reward: the judge does not answer"


async def test_without_one_a_group_is_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    groups = await make_worker(monkeypatch, seen).run_groups(requests(greedy=False))
    assert len(seen) == 4
    assert all(group.greedy is None and len(group.played) == 2 for group in groups)
