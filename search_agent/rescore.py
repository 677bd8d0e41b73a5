"""``python -m search_agent.rescore RUN reward=...``: score a run's saved trajectories again, without a model.

``reward`` is a preset (``em``) or a plug-in of one's own (``my_package.my_reward``), with ``reward.key=``
for its keys. The run is not changed: the new scores go to ``RUN/rescored/<reward>.jsonl``, one line a trajectory.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_agent.config import RunConfig
from search_agent.console.command import run_command
from verl.config.compose import CONFIG_DIR
from verl.config.nearest import nearest
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import episode_files, read_episodes, stage_and_step
from verl.rollout.interfaces import Score
from verl.trajectory import Trajectory

if TYPE_CHECKING:
    from rich.table import Table

    from search_agent.data.source import Source

USAGE = "write: python -m search_agent.rescore RUN reward=PRESET_OR_MODULE [reward.key=value ...]"


@dataclass(frozen=True)
class Rescored:
    """One trajectory with both scores."""

    file: str
    trajectory: Trajectory
    score: Score

    def record(self) -> dict[str, Any]:
        """A JSON-ready line."""
        return {
            "file": self.file,
            "task_id": self.trajectory.task_id,
            "sample": self.trajectory.sample,
            "reward_before": self.trajectory.reward,
            "reward": self.score.reward,
            "parts": self.score.parts,
        }


def main(arguments: Sequence[str]) -> int:
    """Rescore every saved file of the run and print one row for each."""
    from search_agent.console.screen import say, screen
    from search_agent.data.inputs import DATA_ROOT

    run, overrides = read_arguments(arguments)
    config = run_config(run, overrides)
    source: Source = config.data.build(out=DATA_ROOT, seed=config.seed)
    files = episode_files(run)
    tasks = task_reader(source)
    score = scorer(config)
    rescored = {file.name: score_file(file, tasks(file.name), score) for file in files}
    path = run / "rescored" / f"{config.reward.module.rpartition('.')[2]}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row.record()) + "\n" for rows in rescored.values() for row in rows))
    console = screen()
    console.print(table(f"{run}, scored by {config.reward.module}", rescored))
    say(console, f"record: {path}")
    return 0


def read_arguments(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The run folder and the overrides. Raises UserError without a run or a reward."""
    paths = [a.removeprefix("run=") for a in arguments if a.startswith("run=") or "=" not in a]
    overrides = [a for a in arguments if "=" in a and not a.startswith("run=")]
    if len(paths) != 1 or not any(a.startswith("reward=") for a in overrides):
        raise UserError(f"name one run and one reward; {USAGE}")
    return Path(paths[0]), overrides


def run_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """The run's own configuration with another reward. Raises UserError if the folder is no run."""
    from search_agent import evaluate

    if not (run / "config.yaml").exists():
        raise UserError(f"{run} is not a run folder (it has no config.yaml); {USAGE}")
    return evaluate.run_config(run / "config.yaml", _with_modules(overrides))


def _with_modules(overrides: Sequence[str]) -> list[str]:
    """A reward by import path is a preset without keys of its own, with the plug-in exchanged."""
    presets = [path.stem for path in (CONFIG_DIR / "reward").glob("*.yaml")]
    result = []
    for override in overrides:
        key, _, value = override.partition("=")
        by_path = key == "reward" and "." in value
        if key == "reward" and not by_path and value not in presets:
            raise UserError(
                f"{override}: no such preset{nearest(value, presets)}; a plug-in is named by its import path"
            )
        result += ["reward=em", f"reward.plugin={value}"] if by_path else [override]
    return result


def task_reader(source: Source) -> Callable[[str], Mapping[str, Task]]:
    """Tasks by id for a file of trajectories, whose name begins with the split; each data set is read once."""
    read: dict[Path, dict[str, Task]] = {}

    def tasks(file: str) -> Mapping[str, Task]:
        split = source.splits.get(file.split("_")[0].split("-")[0], source.test)
        if split.tasks not in read:
            read[split.tasks] = {task.id: task for task in split.load()}
        return read[split.tasks]

    return tasks


def scorer(config: RunConfig) -> Callable[[list[tuple[Task, Trajectory]]], list[Score]]:
    """Scores many trajectories, in order; a pool of processes works on as many as it has."""
    from search_agent.rewards.pool import RewardPool, reward_function

    reward = reward_function(config.reward, config.protocol.build())
    if isinstance(reward, RewardPool):
        return reward.score_all
    return lambda pairs: [reward(task, trajectory) for task, trajectory in pairs]


def score_file(
    file: Path, tasks: Mapping[str, Task], score: Callable[[list[tuple[Task, Trajectory]]], list[Score]]
) -> list[Rescored]:
    """Score one file's trajectories; those that infrastructure aborted are left out, as in training."""
    kept = [one.trajectory for one in read_episodes(file) if one.trajectory.outcome != "aborted"]
    unknown = [trajectory.task_id for trajectory in kept if trajectory.task_id not in tasks]
    if unknown:
        raise UserError(f"{file}: task {unknown[0]} is not in the run's data set: the data changed since the run")
    scores = score([(tasks[trajectory.task_id], trajectory) for trajectory in kept])
    return [Rescored(file.name, trajectory, one) for trajectory, one in zip(kept, scores, strict=True)]


def table(title: str, rescored: Mapping[str, Sequence[Rescored]]) -> Table:
    """One row a file: both mean rewards, their paired difference with its 95 % interval, and exact match."""
    from rich.box import SIMPLE
    from rich.table import Table

    from search_agent.evaluation.statistics import paired_bootstrap

    result = Table(title=title, box=SIMPLE)
    result.add_column("episodes", overflow="fold")
    for column in ("n", "before", "after", "difference, 95 %", "em"):
        result.add_column(column, justify="right", no_wrap=True)
    for file, rows in rescored.items():
        stage, step = stage_and_step(Path(file))
        name = f"{stage} {step}" if step else stage
        if not rows:
            result.add_row(name, "0")
            continue
        before = _task_means(rows, lambda row: row.trajectory.reward or 0.0)
        after = _task_means(rows, lambda row: row.score.reward)
        exact = _task_means(rows, lambda row: row.score.parts.get("em", math.nan))
        means = [f"{sum(values) / len(values):.3f}" for values in (before, after, exact)]
        difference = paired_bootstrap(before, after, seed=0)
        result.add_row(name, str(len(rows)), *means[:2], str(difference), *means[2:])
    return result


def _task_means(rows: Sequence[Rescored], value: Callable[[Rescored], float]) -> list[float]:
    """The mean over each task's samples: tasks are independent of each other, samples of one task are not."""
    by_task: dict[str, list[float]] = {}
    for row in rows:
        by_task.setdefault(row.trajectory.task_id, []).append(value(row))
    return [sum(values) / len(values) for values in by_task.values()]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
