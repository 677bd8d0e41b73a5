"""The learner as a command of its own: what it is asked for and cannot know ends in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import ROOT
from verl.algorithms.config import AdvantageConfig
from verl.errors import UserError
from verl.learner.__main__ import read_samples
from verl.trajectory import Trajectory


@pytest.fixture
def trajectories(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    trajectory = Trajectory("q", 0, outcome="finished", reward=1.0)
    trajectory.append_prompt([1], "q")
    trajectory.append_generated([2], "a", [0.0], [0], "stop")
    path.write_text(json.dumps(trajectory.to_record()) + "\n")
    return path


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (AdvantageConfig(name="softmax"), "accepted answers"),
        (AdvantageConfig(name="remax"), "greedy episodes"),
        (AdvantageConfig(name="gae"), "a critic"),
        (AdvantageConfig(name="gdpo", parts={"em": 1.0}), "parts of the reward"),
    ],
)
def test_an_advantage_that_needs_more_than_trajectories_is_refused(
    config: AdvantageConfig, what: str, trajectories: Path
) -> None:
    with pytest.raises(UserError, match=rf"advantage\.name={config.name} needs {what}"):
        read_samples(trajectories, config)


def test_the_command_says_so_without_a_traceback(trajectories: Path) -> None:
    command = [sys.executable, "-m", "verl.learner", "model", str(trajectories), "advantage.name=softmax"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("advantage.name=softmax needs accepted answers")
    assert "Traceback" not in done.stderr
