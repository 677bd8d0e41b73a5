"""The campaign sees what it is there to see: groups trained on twice or never, lost episodes, old samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.faults import soak
from bench.faults.campaign import MODES, PROMPTS, SAMPLES, SMALL, STALENESS, STEPS, lineage_faults
from bench.faults.runs import rows, without_timing
from search_agent.config import RunConfig
from verl.config.build import build
from verl.config.compose import compose
from verl.data.tasks import Task
from verl.rollout.episodes import Episode
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Trajectory

Rows = list[dict[str, Any]]


def write(path: Path, change: Callable[[Rows], None] = lambda trained: None, age: int = 0) -> Path:
    """A run folder as an undisturbed run leaves it, but for ``change``; every sample is ``age`` versions old."""
    folder = RunFolder.open(path, "a: 1\n", fresh=False)
    trained = [
        {"step": step, "groups": list(range((step - 1) * PROMPTS, step * PROMPTS)), "episodes": PROMPTS * SAMPLES}
        for step in range(1, STEPS + 1)
    ]
    change(trained)
    for name, lines in {
        "trained.jsonl": trained,
        "metrics.jsonl": [{"step": r["step"], "reward": 1} for r in trained],
    }.items():
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(1, STEPS + 1):
        saved = Episode(Task("t", "q", ("a",)), "train", episode(step - 1 - age))
        folder.write_trajectories("train", step, [saved] * (PROMPTS * SAMPLES), keep=STEPS)
    return path


def episode(version: int) -> Trajectory:
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1], "q")
    trajectory.append_generated([2], "a", [-1.0], [version], "stop")
    return trajectory


def test_an_undisturbed_run_has_no_fault(tmp_path: Path) -> None:
    assert lineage_faults(write(tmp_path / "run", age=STALENESS)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda trained: trained[2]["groups"].__setitem__(0, 0), "groups are"),
        (lambda trained: trained[2]["groups"].pop(), "groups are"),
        (lambda trained: trained[2]["groups"].append(STEPS * PROMPTS), "groups are"),  # a refill that no metric counts
        (lambda trained: trained[1].update(episodes=PROMPTS * SAMPLES - 1), "1 episodes are lost"),
        (lambda trained: trained.append(trained[-1]), "steps are"),
        (lambda trained: trained.pop(), "metrics are of steps"),
    ],
)
def test_what_was_doubled_or_lost_is_a_fault(change: Callable[[Rows], None], said: str, tmp_path: Path) -> None:
    assert any(fault.startswith(said) for fault in lineage_faults(write(tmp_path / "run", change)))


def test_a_sample_beyond_the_bound_is_a_fault(tmp_path: Path) -> None:
    assert len(lineage_faults(write(tmp_path / "run", age=STALENESS + 1))) == STEPS


def test_what_timing_decides_is_left_out_of_a_comparison_and_half_a_row_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "time": 5.0, "seconds/step": 1, "reward": 0.5}\n{"step": 2, "ti'
    )
    assert without_timing(rows(tmp_path)) == [{"step": 1, "reward": 0.5}]


@pytest.mark.parametrize("keys", [*([*SMALL, *mode] for mode in MODES.values()), soak.RUN], ids=[*MODES, "soak"])
def test_the_keys_of_every_run_that_is_killed_are_a_configuration(keys: list[str]) -> None:
    config = build(RunConfig, compose("train", keys))
    assert (config.trainer.prompts_per_step, config.trainer.samples_per_prompt) == (PROMPTS, SAMPLES)
    assert config.trainer.max_staleness in (0, STALENESS)
    assert not config.trainer.drop_uniform_groups, "a group that is dropped would look lost"
