"""What is written beside the loop: in order, while the loop goes on, and no error is lost."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from verl.data.tasks import Task
from verl.rollout.episodes import Episode
from verl.trainer.background import Background
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Trajectory


async def test_the_loop_goes_on_while_work_is_under_way_and_the_next_waits_for_it() -> None:
    background, let_go, done = Background(), threading.Event(), list[str]()

    def first() -> None:
        let_go.wait(30)  # would hold for ever if it ran on the loop
        done.append("first")

    await background.begin(first)
    assert done == []
    second = asyncio.create_task(background.begin(lambda: done.append("second")))
    await asyncio.sleep(0)
    let_go.set()
    await second
    await background.settle()
    assert done == ["first", "second"]


async def test_an_error_is_raised_where_the_loop_comes_by_next_and_once() -> None:
    background, done = Background(), list[str]()

    def fail() -> None:
        raise OSError("disk full")

    await background.begin(fail)
    with pytest.raises(OSError, match="disk full"):
        await background.begin(lambda: done.append("not begun"))
    await background.begin(lambda: done.append("begun"))
    await background.begin(fail)
    with pytest.raises(OSError, match="disk full"):
        await background.settle()
    await background.settle()
    assert done == ["begun"]


async def test_episodes_that_a_kill_left_half_written_are_cleared_and_written_again(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", "a: 1\n", fresh=False)
    half = folder.trajectories / "train_000001.jsonl.gz.writing"
    half.write_bytes(b"half")
    folder = RunFolder.open(tmp_path / "run", "a: 1\n", fresh=False)
    assert not half.exists()
    trajectory = Trajectory("t", 0)
    episode = Episode(Task("t", "q", ("a",)), "train", trajectory)
    background = Background()
    for step in (1, 2):
        await background.begin(lambda step=step: folder.write_trajectories("train", step, [episode], keep=2))  # type: ignore[misc]
    await background.settle()
    assert [len(list(folder.read_trajectories("train", step))) for step in (1, 2)] == [1, 1]
