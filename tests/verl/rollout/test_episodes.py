"""Saved episodes carry what they were about, and what is no episode is named by file and row."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path

import pytest

from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import Episode, episode_files, read_episodes, read_run, stage_and_step, write_episodes
from verl.trajectory import ToolCall, Trajectory

TASK = Task("t1", "who?", ("me", "i"), {"supporting_ids": ["d1"], "hops": 2}, images=("a.png",))


def played(task: Task = TASK) -> Trajectory:
    trajectory = Trajectory(task.id, 0, outcome="finished", reward=1.0, images=task.images)
    trajectory.append_prompt([1, 2], "who? <think>", prefill="<think>")
    trajectory.append_generated([3], "me", [-0.5], [4], "stop")
    trajectory.append_observation([4], "no", [ToolCall("search", "me", failure="refused")], last_call=True)
    return trajectory


def save(run: Path, name: str, *episodes: Episode) -> Path:
    (run / "trajectories").mkdir(exist_ok=True, parents=True)
    write_episodes(run / "trajectories" / name, episodes)
    return run / "trajectories" / name


def test_an_episode_comes_back_with_its_task_split_stage_and_step(tmp_path: Path) -> None:
    [read] = read_episodes(save(tmp_path, "test-after-greedy_000012.jsonl.gz", Episode(TASK, "test", played())))
    assert (read.task, read.split, read.stage, read.step) == (TASK, "test", "test-after-greedy", 12)
    assert read.trajectory.to_record() == played().to_record()
    assert read.trajectory.turns[0].text == "<think>me"


def test_long_or_odd_metadata_never_keeps_an_episode_from_being_saved(tmp_path: Path) -> None:
    metadata = {"context": "x" * 5000, "day": datetime.date(2020, 1, 2), "kind": "author"}
    task = Task("t", "q", ("a",), metadata)
    [read] = read_episodes(save(tmp_path, "train_000001.jsonl.gz", Episode(task, "train", played(task))))
    assert read.task.metadata == {"day": "2020-01-02", "kind": "author"}


def test_files_of_earlier_versions_are_read_without_question(tmp_path: Path) -> None:
    record = played().to_record()
    for segment in record["segments"]:
        del segment["prefill"], segment["last_call"]
    (tmp_path / "traces.jsonl").write_text(json.dumps(record) + "\n")
    [read] = read_episodes(tmp_path / "traces.jsonl")
    assert (read.task, read.split, read.stage, read.step) == (Task("t1", "", (), images=("a.png",)), "", "traces", 0)


def test_reading_is_lazy_and_names_the_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(played().to_record()) + "\n[]\n")
    episodes = read_episodes(file)
    assert next(episodes).trajectory.task_id == "t1"
    with pytest.raises(UserError, match=r"x\.jsonl, row 2: not a saved trajectory"):
        next(episodes)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    file = save(tmp_path, "train_000001.jsonl.gz", *[Episode(TASK, "train", played())] * 50)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"train_000001\.jsonl\.gz: ends in the middle"):
        list(read_run(tmp_path))
    file.write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"train_000001\.jsonl\.gz: cannot be read"):
        list(read_run(tmp_path))
    with gzip.open(file, "wb") as out:
        out.write(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"train_000001\.jsonl\.gz, row 1: not a saved trajectory"):
        list(read_run(tmp_path))
    with pytest.raises(UserError, match="holds no trajectories"):
        episode_files(tmp_path / "nothing")


def test_names_say_stage_and_step() -> None:
    assert stage_and_step(Path("a/dev-greedy_000020.jsonl.gz")) == ("dev-greedy", 20)
    assert stage_and_step(Path("episodes.jsonl")) == ("episodes", 0)
