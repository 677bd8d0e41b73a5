"""An evaluation with the engines here that is broken off goes on: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.faults.runs import output
from search_agent.config import RunConfig
from search_agent.console.command import load_config
from search_agent.evaluation.journal import Journal, stamp
from search_agent.evaluation.playing import conclude, keep, play_on_workers, still_open
from tests.end_to_end.support import logs, run_processes, shared_memory, start, wait_until_clean
from verl.data.tasks import Task
from verl.errors import InfrastructureError
from verl.rollout.episodes import read_episodes
from verl.rollout.groups import Group, GroupRequest
from verl.seeds import derive_seed
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Trajectory

TASKS = [Task(f"t{number}", f"question {number}", ("yes it is",)) for number in range(12)]
DECODINGS = (
    "evaluation.decodings=[{name: greedy, temperature: 0.0}, {name: sampled, samples: 3}]",
    "evaluation.select_by=sampled",
)


class Pool:
    """Plays at once; the worker of the ``fails_at``-th episode is gone for good."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: Counter[tuple[str, str, int]] = Counter()
        self._fails_at = fails_at

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        return [Group(one.number, one.task, [self._play(one, sample) for sample in one.numbers]) for one in requests]

    def _play(self, one: GroupRequest, sample: int) -> Trajectory:
        if self._fails_at is not None and self.asked.total() >= self._fails_at:
            raise InfrastructureError("no worker is left")
        self.asked[one.stage, one.task.id, sample] += 1
        draw = derive_seed(one.stage, one.task.id, sample) % 2
        return Trajectory(one.task.id, sample, outcome="finished", reward=float(draw), reward_parts={"em": float(draw)})


@pytest.fixture
def config() -> RunConfig:
    return load_config(DECODINGS)


def evaluate(config: RunConfig, folder: Path, pool: Pool, **played: Any) -> dict[str, Any]:
    journal, run = Journal(folder, played, fresh=config.fresh), RunFolder(folder)
    run.trajectories.mkdir(parents=True, exist_ok=True)
    done, open_ = still_open(config, TASKS, journal)
    playing = play_on_workers(pool, open_, fixed=config.deterministic)  # type: ignore[arg-type]
    asyncio.run(keep(playing, done, journal))
    return conclude(config, TASKS, done, run)


@pytest.mark.parametrize("fails_at", [0, 1, 17, 47])
def test_every_finished_episode_is_kept_and_a_restart_asks_for_the_others_alone(
    config: RunConfig, tmp_path: Path, fails_at: int
) -> None:
    whole = evaluate(config, tmp_path / "whole", Pool())
    broken, rest = Pool(fails_at), Pool()
    with pytest.raises(InfrastructureError):
        evaluate(config, tmp_path / "run", broken)
    assert evaluate(config, tmp_path / "run", rest) == whole
    assert set((broken.asked + rest.asked).values()) == {1}
    assert (broken.asked.total(), rest.asked.total()) == (fails_at, 48 - fails_at)


def test_a_finished_one_is_not_played_again_unless_asked(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(config, tmp_path, Pool())
    again, fresh, other = Pool(), Pool(), Pool()
    evaluate(config, tmp_path, again)
    assert again.asked.total() == 0
    assert "48 of 48 episodes are on disk from before" in capsys.readouterr().out
    evaluate(load_config([*DECODINGS, "fresh=true"]), tmp_path, fresh)
    evaluate(config, tmp_path, other, files=[("model.safetensors", 1, 2)])
    assert fresh.asked.total() == other.asked.total() == 48


def test_a_deterministic_one_is_played_in_parts_of_fixed_size(tmp_path: Path) -> None:
    pool = Pool()
    evaluate(load_config([*DECODINGS, "deterministic=true"]), tmp_path, pool)
    assert set(pool.asked.values()) == {1}
    assert pool.asked.total() == 48


def test_other_weights_under_the_same_name_are_another_model(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "best").symlink_to("a")
    before = stamp(str(tmp_path / "best"))
    assert stamp(str(tmp_path / "a")) == before
    (tmp_path / "a" / "model.safetensors").write_bytes(b"12345")
    assert stamp(str(tmp_path / "best")) != before


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_evaluation_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Of an untrained model, whose answers say nothing: that none is lost or asked twice is what is looked at."""
    keys = ["evaluation.test_tasks=150", "deterministic=false", "environment.max_tokens_per_turn=64"]
    before, run_dir = shared_memory(), tmp_path / "run"
    process = start(run_dir, *keys, "model=embedded", module="search_agent.evaluate")
    while not (lines := journal_lines(run_dir)) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    wait_until_clean(run_dir, before, 30)
    lines = journal_lines(run_dir)
    assert 0 < len(lines) < 300, output(run_dir)
    process = start(run_dir, *keys, "model=embedded", module="search_agent.evaluate")
    assert process.wait(300) == 0, output(run_dir) + logs(run_dir)
    assert f"{len(lines)} of 300 episodes are on disk" in output(run_dir)
    after = journal_lines(run_dir)
    assert (len(after), len(set(after))) == (300, 300)
    assert lines <= set(after)
    assert run_processes(run_dir) == []
    assert sum(1 for file in run_dir.glob("trajectories/*.gz") for _ in read_episodes(file)) == 300


def journal_lines(run_dir: Path) -> set[bytes]:
    """Whole lines of the journal."""
    files = run_dir.glob("journal-*/*.jsonl")
    return {line for file in files for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")}
