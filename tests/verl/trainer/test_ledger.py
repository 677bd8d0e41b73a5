"""The ledger holds one lineage of weights: what a killed process wrote beyond its checkpoint is gone."""

from __future__ import annotations

from pathlib import Path

from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.tracking.jsonl import read_metrics
from verl.trainer.ledger import FILE, Ledger
from verl.trajectory import Trajectory


def group(number: int, *versions: int, aborted: int = 0) -> Group:
    episodes = []
    for sample, version in enumerate(versions):
        episode = Trajectory(str(number), sample)
        episode.append_prompt([1], "q")
        episode.append_generated([2, 3], "a", [-1.0, -1.0], [version, version + 1], "stop")
        episode.outcome = "aborted" if sample < aborted else "finished"
        episodes.append(episode)
    return Group(number, Task(str(number), "q", ("a",)), episodes)


def test_a_step_tells_its_groups_and_the_age_of_the_oldest_token_it_trained_on(tmp_path: Path) -> None:
    Ledger(tmp_path).record(4, [group(7, 3, 2), group(9, 0, 3, aborted=1)])
    assert read_metrics(tmp_path / FILE) == [{"step": 4, "groups": [7, 9], "episodes": 3, "aborted": 1, "staleness": 1}]


def test_a_resumed_run_takes_back_what_its_weights_have_not_seen(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    for step in (1, 2, 3):
        first.record(step, [group(step, step - 1)])
    Ledger(tmp_path).record(2, [group(5, 1)])  # killed after step 3, goes on from the checkpoint of step 1
    assert [(row["step"], row["groups"]) for row in read_metrics(tmp_path / FILE)] == [(1, [1]), (2, [5])]
