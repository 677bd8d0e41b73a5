from __future__ import annotations

import errno
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import Episode
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Trajectory

TASK = Task("t1", "who?", ("me",))


def make(path: Path, config: str = "a: 1\n", *, fresh: bool = False) -> RunFolder:
    return RunFolder.open(path, config, fresh=fresh)


def checkpoint(folder: RunFolder, step: int, *, hugging_face: bool = True, shard: bytes = b"") -> Path:
    path = folder.begin_checkpoint(step)
    (path / "learner").mkdir()
    (path / "learner" / "shard").write_bytes(shard)
    if hugging_face:
        (path / "hf").mkdir()
        (path / "hf" / "config.json").write_text("{}")
    return folder.commit_checkpoint(path, {"step": step})


def test_a_folder_of_another_configuration_is_refused_and_fresh_replaces_it(tmp_path: Path) -> None:
    make(tmp_path / "run").write_json("summary.json", {"steps": 1})
    with pytest.raises(UserError, match="another configuration"):
        make(tmp_path / "run", "a: 2\n")
    assert make(tmp_path / "run").read_json("summary.json") == {"steps": 1}
    assert make(tmp_path / "run", "a: 2\n", fresh=True).read_json("summary.json") is None


@pytest.mark.parametrize(
    "result", ["metrics.jsonl", "before.json", "checkpoints/step_000010", "trajectories/train_000001.jsonl.gz"]
)
def test_a_start_that_failed_does_not_keep_its_folder_from_a_mended_command(tmp_path: Path, result: str) -> None:
    failed = make(tmp_path / "run")
    failed.write_json("retriever.json", {"fingerprint": "other"})
    (failed.logs / "retriever_0.log").write_text("port in use")
    mended = make(tmp_path / "run", "a: 2\n")
    assert mended.config.read_text() == "a: 2\n"
    assert mended.read_json("retriever.json") is None
    (mended.path / result).write_text("{}")
    with pytest.raises(UserError, match="another configuration"):
        make(tmp_path / "run", "a: 3\n")


@pytest.mark.parametrize("beside", [[], ["config.yaml"]])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_folder_of_the_users_own_is_never_deleted(tmp_path: Path, beside: list[str], fresh: bool) -> None:
    for name in ["thesis.txt", *beside]:
        (tmp_path / name).write_text("precious")
    if fresh or beside:
        with pytest.raises(UserError, match="no run" if fresh else "another configuration"):
            make(tmp_path, fresh=fresh)
    else:
        make(tmp_path)
    assert all((tmp_path / name).read_text() == "precious" for name in ["thesis.txt", *beside])


def test_a_checkpoint_that_was_not_committed_is_not_resumed_from(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    checkpoint(folder, 10)
    (folder.begin_checkpoint(20) / "learner").mkdir()
    again = make(tmp_path / "run")
    assert [path.name for path in again.resumable()] == ["step_000010"]
    assert [path.name for path in again.checkpoints.iterdir()] == ["step_000010"], "the leftover is cleared"


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (shorten, r"learner/shard has 999 bytes, 1,000 were written"),
        (flip_a_bit, "the content of learner/shard has changed"),
        (Path.unlink, "learner/shard is missing"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    damage: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "run")
    for step in (10, 20, 30):
        checkpoint(folder, step, shard=bytes(1000))
    for step in (20, 30):
        damage(folder.checkpoint(step) / "learner" / "shard")
    told = folder.set_damaged_aside()
    assert [path.name for path in folder.resumable()] == ["step_000010"]
    assert len(told) == 2
    assert all(re.search(f"damaged .{why}.*: going on from step_000010", line) for line in told)
    assert folder.set_damaged_aside() == []


def test_where_no_checkpoint_is_whole_nothing_is_touched_and_the_user_decides(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    checkpoint(folder, 10, shard=bytes(1000))
    (folder.checkpoint(10) / "loop.json").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint is whole \(step_000010: loop.json has 2 bytes.*fresh=true"):
        folder.set_damaged_aside()
    assert [path.name for path in folder.resumable()] == ["step_000010"]


def test_a_full_disk_is_told_as_one_however_it_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "run")
    no_space = OSError(errno.ENOSPC, "No space left on device")
    for error in (no_space, ExceptionGroup("in a task", [ValueError("x"), ExceptionGroup("deeper", [no_space])])):
        assert "its disk is full" in str(folder.explain(error))
    assert folder.explain(OSError(errno.EACCES, "no")) is None
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert "1 MiB free" in str(folder.explain(RuntimeError("PytorchStreamWriter failed")))
    assert folder.explain(UserError("a wrong key")) is None


def test_retention_keeps_the_newest_and_the_weights_of_the_best(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    for step in (10, 20, 30, 40):
        final = checkpoint(folder, step)
        if step == 10:
            folder.link("best_dev", final)
        folder.retain(2)
    assert [path.name for path in folder.resumable()] == ["step_000030", "step_000040"]
    assert (folder.path / "best_dev" / "config.json").exists()
    assert not (folder.checkpoints / "step_000020").exists()
    folder.link("best_dev", folder.checkpoints / "step_000040")
    folder.retain(2)
    assert not (folder.checkpoints / "step_000010").exists(), "it is neither new nor best any more"


def test_trajectories_come_back_as_written_and_old_steps_go(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    trajectory = Trajectory("t1", 0)
    trajectory.append_prompt([1, 2], "who?")
    trajectory.append_generated([3], "me", [-0.5], [4], "stop")
    trajectory.outcome, trajectory.reward = "finished", 1.0
    for step in range(1, 6):
        folder.write_trajectories("train", step, [Episode(TASK, "train", trajectory)], keep=2)
    assert [path.name for path in sorted(folder.trajectories.iterdir())] == [
        "train_000004.jsonl.gz",
        "train_000005.jsonl.gz",
    ]
    [read] = folder.read_trajectories("train", 5)
    assert read.to_record() == trajectory.to_record()
    assert read.policy_mask().tolist() == [False, False, True]


def test_trajectories_with_what_json_cannot_say_are_written_all_the_same(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", "seed: 0\n", fresh=False)
    trajectory = Trajectory("a", 0)
    trajectory.append_prompt([1], "a lone surrogate: \ud800")
    trajectory.append_generated([2], "b", [float("-inf")], [0], "stop")
    folder.write_trajectories("train", 1, [Episode(TASK, "train", trajectory)], keep=1)
    [read] = folder.read_trajectories("train", 1)
    assert read.segments[0].text == trajectory.segments[0].text
    assert not math.isfinite(read.segments[1].logprobs[0])


SHORT, LONG = "seed: 0\ntrainer:\n  steps: 4\n", "seed: 0\ntrainer:\n  steps: 6\n"


def test_more_steps_on_the_same_folder_go_on_from_what_stands_there(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", SHORT)
    checkpoint(folder, 4)
    for name in ("summary.json", "before.json", "after.json"):
        folder.write_json(name, {"steps": 4})
    assert folder.finished_as(SHORT)
    assert not folder.finished_as(LONG)
    longer = make(tmp_path / "run", LONG)
    assert [path.name for path in longer.resumable()] == ["step_000004"]
    assert [name for name in ("summary.json", "before.json", "after.json") if longer.read_json(name)] == ["before.json"]
    assert longer.config.read_text() == LONG
    shutil.rmtree(longer.checkpoints)
    longer.write_json("summary.json", {"steps": 6})
    with pytest.raises(UserError, match="another configuration"):  # nothing to go on from: its results stay
        make(tmp_path / "run", LONG.replace("6", "8"))


@pytest.mark.parametrize("other", [LONG, LONG.replace("0", "1"), "seed: 0\n", LONG.replace("6", "3")])
def test_fewer_steps_or_anything_else_is_another_run(other: str, tmp_path: Path) -> None:
    recorded = LONG.replace("6", "9")
    folder = make(tmp_path / "run", recorded)
    checkpoint(folder, 9)
    folder.write_json("summary.json", {"steps": 9})
    with pytest.raises(UserError, match=r"another configuration.*trainer\.steps alone may grow"):
        make(tmp_path / "run", other)
    assert folder.finished_as(recorded)
