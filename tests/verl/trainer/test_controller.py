"""The whole loop over a learner and engines that do nothing: what it keeps, and what it goes on from."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from verl.algorithms.config import AdvantageConfig
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Sampling
from verl.trainer.config import EvaluationConfig, TrainerConfig, WarmupConfig
from verl.trainer.controller import Controller, RunData, Settings
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Trajectory

TASKS = [Task(str(number), "q", ("a",)) for number in range(4)]
# Of dev after so many steps: exact match is best at once, F1 in the middle.
EM, F1 = (0.0, 0.9, 0.5, 0.4), (0.0, 0.1, 0.8, 0.7)


class Pool:
    """Plays at once, with the newest weights."""

    version = 0

    def check(self) -> None: ...
    async def ready(self) -> None: ...

    async def stats(self) -> dict[str, dict[str, float]]:
        return {}

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        yield

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        return [
            Group(request.number, request.task, list(map(self._play, range(request.samples)))) for request in requests
        ]

    def _play(self, sample: int) -> Trajectory:
        trajectory = Trajectory("t", sample)
        trajectory.append_prompt([1], "q")
        trajectory.append_generated([2, 3], "a", [-0.5, -0.5], [self.version] * 2, "stop")
        trajectory.outcome, trajectory.reward = "finished", float(sample % 2)
        trajectory.reward_parts = {"em": EM[self.version % 4], "f1": F1[self.version % 4]}
        return trajectory


class Learner:
    """Counts; a checkpoint of it is an empty folder."""

    busy_s, loaded = 0.0, None

    def __init__(self) -> None:
        self.called: list[str] = []
        self.hashed = 0

    async def begin_phase(self, phase: Any) -> None:
        self.called.append(f"phase of {phase.optimizer_steps}")

    async def update(self, samples: Sequence[Any], temperature: float) -> dict[str, float]:
        self.called.append(f"update on {len(samples)}")
        return {}

    async def save(self, folder: Path, *, hugging_face: bool, **_: Any) -> None:
        for part in ("learner", "hf") if hugging_face else ("learner",):
            (folder / part).mkdir()

    async def saved(self, *, wait: bool) -> bool:
        return True

    async def load(self, folder: Path, batches: int | None = None) -> None:
        self.loaded = (folder.name, batches)

    async def weights_hash(self) -> str:
        self.hashed += 1
        return "0"


class Sync:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def push(self, version: int) -> None:
        self._pool.version = version

    async def push_saved(self, folder: Path, version: int) -> None:
        self._pool.version = version


class Tracker:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **metrics})


def describe(groups: Sequence[Group]) -> dict[str, Any]:
    parts = groups[0].trajectories[0].reward_parts
    return {"n": len(groups), **parts}


def observe(groups: Sequence[Group]) -> dict[str, float]:
    return {"evidence/found": float(len(groups))}


async def play(
    path: Path, metric: str, steps: int = 3, tracker: Tracker | None = None, **trainer: Any
) -> tuple[dict[str, Any], Learner]:
    pool, learner = Pool(), Learner()
    settings = Settings(
        seed=0,
        warmup=WarmupConfig(),
        trainer=TrainerConfig(
            steps=steps,
            prompts_per_step=2,
            samples_per_prompt=2,
            advantage=AdvantageConfig(),
            save_every_steps=1,
            **trainer,
        ),
        evaluation=EvaluationConfig(every_steps=1, metric=metric),
        sampling=Sampling(),
        updates_per_batch=1,
        max_policy_tokens=8,
    )
    folder = RunFolder.open(path, f"trainer:\n  steps: {steps}\n", fresh=False)
    parts: list[Any] = [learner, pool, Sync(pool), tracker or Tracker(), describe, None, observe]
    controller = Controller(settings, RunData(TASKS, TASKS, TASKS, []), folder, *parts)
    return await controller.run(), learner


@pytest.mark.parametrize(("metric", "best"), [("em", (0.9, 1)), ("f1", (0.8, 2))])
async def test_the_best_checkpoint_is_that_of_the_metric_that_is_named(
    metric: str, best: tuple[float, int], tmp_path: Path
) -> None:
    summary, _ = await play(tmp_path / "run", metric)
    assert (summary["best"]["best_dev"]["score"], summary["best"]["best_dev"]["step"]) == best
    assert (tmp_path / "run" / "best_dev").resolve().parent.name == f"step_{best[1]:06d}"
    files = sorted(path.name for path in (tmp_path / "run" / "trajectories").glob("train_*"))
    assert files == [f"train_{step:06d}.jsonl.gz" for step in (1, 2, 3)], "written beside the loop, and all of them"


async def test_a_metric_that_there_is_not_ends_the_run_at_its_first_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.metric=f2: dev has no such number; did you mean f1\?"):
        await play(tmp_path / "run", "f2")
    assert not list((tmp_path / "run" / "trajectories").glob("train_*")), "nothing was trained"


async def test_a_finished_run_whose_steps_grow_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    await play(tmp_path / "run", "em", steps=2)
    (tmp_path / "run" / "summary.json").write_text("{}")
    summary, learner = await play(tmp_path / "run", "em", steps=5)
    assert (summary["steps"], learner.loaded) == (5, ("step_000002", 5))
    lines = (tmp_path / "run" / "trained.jsonl").read_text().splitlines()
    assert len(lines) == 5, "each step once"


async def test_every_byte_is_hashed_once_a_run_and_not_at_each_save(tmp_path: Path) -> None:
    summary, learner = await play(tmp_path / "run", "em")
    assert (learner.hashed, summary["weights_hash"]) == (1, "0")


async def test_what_is_observed_of_a_steps_groups_is_among_its_metrics(tmp_path: Path) -> None:
    tracker = Tracker()
    await play(tmp_path / "run", "em", tracker=tracker)
    rows = [row for row in tracker.rows if "reward" in row]
    assert [(row["step"], row["evidence/found"]) for row in rows] == [(1, 2.0), (2, 2.0), (3, 2.0)]


async def test_every_step_begins_with_a_fresh_optimizer_if_asked_for_also_after_a_resume(tmp_path: Path) -> None:
    _, learner = await play(tmp_path / "run", "em", steps=2, fresh_optimizer=True, passes=2)
    assert learner.called == ["phase of 1", *["phase of 1", "update on 8"] * 2]
    (tmp_path / "run" / "summary.json").write_text("{}")
    _, learner = await play(tmp_path / "run", "em", steps=3, fresh_optimizer=True, passes=2)
    assert (learner.loaded, learner.called) == (("step_000002", 1), ["phase of 1", "update on 8"])


async def test_episodes_are_written_while_the_weights_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = {step: threading.Event() for step in (1, 2)}
    order: list[tuple[str, int]] = []
    write, push = RunFolder.write_trajectories, Sync.push

    def noted_write(folder: RunFolder, stage: str, step: int, *rest: Any, **more: Any) -> None:
        write(folder, stage, step, *rest, **more)
        if stage == "train":
            order.append(("written", step))
            writing[step].set()

    async def noted_push(sync: Sync, version: int) -> None:
        if version:  # if the writing began behind it, it would wait in vain
            assert await asyncio.to_thread(writing[version].wait, 30)
            order.append(("pushed", version))
        await push(sync, version)

    monkeypatch.setattr(RunFolder, "write_trajectories", noted_write)
    monkeypatch.setattr(Sync, "push", noted_push)
    await play(tmp_path, "em", steps=2)
    assert order == [("written", 1), ("pushed", 1), ("written", 2), ("pushed", 2)]
