"""Faults of a whole, real run: it survives with nothing lost, or ends with one line and the same command goes on.

Every run is deterministic, so that nothing lost means: identical to the undisturbed run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults import campaign, runs
from bench.faults.campaign import MODES, SMALL, differences

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

COLD = [*SMALL, "deterministic=true"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a run that begins with a model that searches."""
    taught = campaign.finish(tmp_path_factory.mktemp("warm") / "run", MODES["warmup"]).folder
    return ["deterministic=true", f"model={taught / 'best_dev'}"]


@pytest.fixture(scope="module")
def whole(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run from start to end, undisturbed."""
    folder = campaign.finish(tmp_path_factory.mktemp("whole") / "run", keys).folder
    assert sum(row["calls"] for row in runs.rows(folder) if "reward" in row) > 1, "it does not search"
    return folder


def last_line(run_dir: Path) -> str:
    return runs.output(run_dir).rstrip().splitlines()[-1]


def goes_on_to_the_same_end(run_dir: Path, keys: list[str], whole: Path) -> None:
    campaign.finish(run_dir, keys)
    assert differences(run_dir, whole, identical=True) == []


def processes(run_dir: Path, name: str) -> list[int]:
    found = [pid for pid, command in runs.run_processes(run_dir).items() if name in command]
    assert found, f"no {name} among {runs.run_processes(run_dir)}"
    return found


def test_a_learner_rank_that_is_killed_ends_the_run_with_one_line(keys: list[str], whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = runs.launch(run_dir, [*SMALL, *keys])
    runs.wait_for_step(process, run_dir, 3)
    os.kill(processes(run_dir, "LearnerActor")[0], signal.SIGKILL)
    assert process.wait(120) == 3
    assert "learner" in last_line(run_dir)
    assert "its process died" in last_line(run_dir)
    assert runs.run_processes(run_dir) == {}
    goes_on_to_the_same_end(run_dir, keys, whole)


def test_a_rollout_worker_that_is_killed_in_an_episode_costs_nothing(
    keys: list[str], whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = runs.launch(run_dir, [*SMALL, *keys])
    runs.wait_for_step(process, run_dir, 2)
    os.kill(processes(run_dir, "RolloutActor")[0], signal.SIGKILL)
    assert process.wait(600) == 0, runs.output(run_dir)[-2000:]
    assert "played again" in runs.output(run_dir) or "died" in runs.output(run_dir)
    assert differences(run_dir, whole, identical=True) == []


def test_a_retrieval_server_of_the_run_that_is_killed_ends_it_with_one_line(
    keys: list[str], whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = runs.launch(run_dir, [*SMALL, *keys])
    runs.wait_for_step(process, run_dir, 1)
    for pid in processes(run_dir, "search_agent.retrieval.server"):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(120) == 3
    assert "the retrieval server at" in last_line(run_dir)
    assert "killed by signal 9" in last_line(run_dir)
    goes_on_to_the_same_end(run_dir, keys, whole)


def test_a_truncated_checkpoint_is_passed_over(keys: list[str], whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = runs.launch(run_dir, [*SMALL, *keys])
    runs.wait_for_step(process, run_dir, 5)  # a checkpoint every second step
    runs.stop(process, signal.SIGKILL)
    runs.left_behind(run_dir, runs.shared_memory())
    newest = max((run_dir / "checkpoints").glob("step_*[0-9]"))
    shard = max(newest.rglob("*.distcp"), key=lambda file: file.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    goes_on_to_the_same_end(run_dir, keys, whole)
    assert f"{newest} is damaged" in runs.output(run_dir)


def test_a_learner_that_hangs_is_named_and_ends_the_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    bounds = ["cluster.stall_warning_s=5", "cluster.stall_error_s=20"]
    process = runs.launch(run_dir, [*COLD, *bounds])
    runs.wait_for_step(process, run_dir, 1)
    os.kill(processes(run_dir, "LearnerActor")[0], signal.SIGSTOP)
    assert process.wait(120) == 3
    assert "warning: learner has not moved for" in runs.output(run_dir)
    assert "nothing has moved for" in last_line(run_dir)
    assert "learner: the run waits for" in last_line(run_dir)
    assert runs.run_processes(run_dir) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 MiB that is its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no disk of its own can be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up_ends_the_run_with_one_line(
    keys: list[str], whole: Path, small_disk: Path, tmp_path: Path
) -> None:
    run_dir, filler = tmp_path / "run", small_disk / "filler"
    (small_disk / "run").mkdir()
    run_dir.symlink_to(small_disk / "run")  # what it prints goes elsewhere
    process = runs.launch(run_dir, [*SMALL, *keys])
    runs.wait_for_step(process, run_dir, 2)
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(512 << 20))
    assert process.wait(300) == 3
    assert "its disk is full" in last_line(run_dir)
    filler.unlink()
    goes_on_to_the_same_end(run_dir, keys, whole)


REWARD = """
from dataclasses import dataclass
from pathlib import Path
import time
from verl.rollout.interfaces import Score

@dataclass(frozen=True)
class Config:
    mode: str = ""

def build(config, protocol):
    def reward(task, trajectory):
        if config.mode == "raise":
            raise KeyError("gold")
        if config.mode == "hang":
            time.sleep(600)
        return Score(float("nan"))
    return reward
"""


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("raise", "KeyError: 'gold'"),
        ("hang", "no result after 10 s: it hangs, or needs a longer deadline_s"),
        ("not_a_number", "reward is nan: return a finite number"),
    ],
)
def test_a_reward_that_fails_ends_the_run_with_one_line(mode: str, message: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "users_reward.py").write_text(textwrap.dedent(REWARD))
    reward = ["reward=em", "reward.plugin=users_reward", f"+reward.mode={mode}"]
    process = runs.launch(run_dir, [*COLD, *reward], PYTHONPATH=str(tmp_path))
    assert process.wait(300) == 2, runs.output(run_dir)[-2000:]
    assert "reward users_reward: task" in last_line(run_dir)
    assert message in last_line(run_dir)
    assert runs.run_processes(run_dir) == {}
