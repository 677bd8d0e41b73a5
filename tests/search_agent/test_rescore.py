"""Saved trajectories are scored again by another reward, without a model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from search_agent.console.command import NOT_RESULTS, load_config
from search_agent.rescore import main
from verl.config.build import to_dict
from verl.config.compose import to_yaml
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import Episode
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Outcome, Trajectory


def episode(task: str, sample: int, answer: str, reward: float, outcome: Outcome = "finished") -> Trajectory:
    trajectory = Trajectory(task, sample, outcome=outcome, reward=reward)
    trajectory.append_prompt([1], "q")
    trajectory.append_generated([1], f"<think> t </think> <answer> {answer} </answer>", [0.0], [0], "stop")
    return trajectory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two training episodes of one task and an aborted one, scored by F1 so far."""
    rows = [{"id": name, "question": "who?", "golden_answers": ["mara ellwood"]} for name in ("a", "b")]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.jsonl").write_text("")
    files = [f"data.{split}={tmp_path / 'tasks.jsonl'}" for split in ("train", "dev", "test")]
    corpus = f"data.corpus={tmp_path / 'corpus.jsonl'}"
    config = to_dict(load_config(["data=files", *files, corpus, "model=none", "reward=f1"]))
    text = to_yaml({key: value for key, value in config.items() if key not in NOT_RESULTS})
    folder = RunFolder.open(tmp_path / "run", text, fresh=False)
    episodes = [
        episode("a", 0, "mara", 2 / 3),
        episode("a", 1, "mara ellwood", 1.0),
        episode("b", 0, "x", 0.0, outcome="aborted"),
    ]
    saved = [Episode(Task(t.task_id, "who?", ("mara ellwood",)), "train", t) for t in episodes]
    folder.write_trajectories("train", 1, saved, keep=1)
    return folder.path


def scores(run: Path, reward: str) -> list[tuple[str, int, float, float]]:
    lines = (run / "rescored" / f"{reward}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["task_id"], row["sample"], row["reward_before"], row["reward"]) for row in rows]


def test_a_preset_rescores_all_but_aborted_episodes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "reward=em"]) == 0
    assert scores(run, "em") == [("a", 0, pytest.approx(2 / 3), 0.0), ("a", 1, 1.0, 1.0)]
    printed = capsys.readouterr().out
    assert "train 1 " in printed
    assert "-0.333 [-0.333, -0.333]" in printed, "one task, so no spread between tasks"


def test_a_plugin_by_path_takes_keys(run: Path) -> None:
    main([f"run={run}", "reward=search_agent.rewards.search_r1", "reward.structure_format_score=0.25"])
    assert [row[3] for row in scores(run, "search_r1")] == [0.25, 1.0]


@pytest.mark.parametrize("arguments", [[], ["reward=em"], ["some/run"], ["a", "b", "reward=em"]])
def test_a_command_without_run_or_reward_shows_the_usage(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"write: python -m search_agent\.rescore RUN reward="):
        main(arguments)


def test_a_reward_that_does_not_exist_is_named_with_the_nearest(run: Path) -> None:
    with pytest.raises(UserError, match=r"reward=autorefin: no such preset.*autorefine"):
        main([str(run), "reward=autorefin"])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        main([str(tmp_path), "reward=em"])


def test_a_data_set_that_lost_a_task_is_an_error(run: Path) -> None:
    row = {"id": "z", "question": "who?", "golden_answers": ["x"]}
    (run.parent / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="task a is not in the run's data set"):
        main([str(run), "reward=em"])


def test_a_damaged_file_is_named_with_its_row(run: Path) -> None:
    with gzip.open(run / "trajectories" / "train_000001.jsonl.gz", "wt") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match=r"train_000001\.jsonl\.gz, row 1: not a saved trajectory"):
        main([str(run), "reward=em"])
