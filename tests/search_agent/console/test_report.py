"""What a finished run shows: its numbers, three episodes, and commands that can be typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_agent.console import report
from search_agent.console.command import load_config
from search_agent.console.report import evaluation_table, pick_samples, prediction_lines, print_report
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import Episode
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Trajectory


def episode(task: str, em: float) -> Trajectory:
    trajectory = Trajectory(task_id=task, sample=0)
    trajectory.append_prompt([1], f"question {task} ")
    trajectory.append_generated([2], "[red]answer[/red]", [0.0], [0], "stop")
    trajectory.outcome, trajectory.reward, trajectory.reward_parts = "finished", em, {"em": em}
    return trajectory


def folder_with(path: Path, before: list[float], after: list[float]) -> RunFolder:
    folder = RunFolder.open(path, "name: x\n", fresh=False)
    for stage, scores in (("test-before-greedy", before), ("test-after-greedy", after)):
        played = [episode(str(number), score) for number, score in enumerate(scores)]
        rows = [Episode(Task(t.task_id, "who?", ("x",)), "test", t) for t in played]
        folder.write_trajectories(stage, 0, rows, keep=1)
    return folder


def titles(folder: RunFolder) -> list[tuple[str, str]]:
    return [(title, trajectory.task_id) for title, trajectory in pick_samples(folder, "greedy")]


def test_one_question_before_and_after_and_a_failure_are_shown(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "run", [1, 0, 0], [1, 1, 0])
    assert titles(folder) == [
        ("before training, wrong:", "1"),
        ("the same question after training, right:", "1"),
        ("after training, still wrong:", "2"),
    ]


def test_three_episodes_are_shown_also_where_nothing_was_learned(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "run", [0, 0, 0, 0], [0, 0, 0, 0])
    assert len(titles(folder)) == 3
    assert len({task for _, task in titles(folder)}) == 3


def result(em: float) -> dict[str, Any]:
    return {"n": 2, "em": em, "em_interval": [0.1, 0.9], "searches": 1.5}


def test_numbers_stand_with_their_intervals_and_what_was_not_measured_is_left_out() -> None:
    table = evaluation_table("t", {"before": {"greedy": result(0.25), "sampled": {"n": 2}}})
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["exact match", "searches per question"], ["0.250 [0.10, 0.90]", "1.500"], ["-", "-"]]


def test_data_sets_have_a_row_each_and_one_for_their_mean() -> None:
    found = result(0.5) | {"em/nq": 0.75, "em/nq_n": 4, "em/nq_interval": [0.3, 0.9], "em/popqa": 0.25, "em/popqa_n": 4}
    table = evaluation_table("t", {"": {"greedy": found | {"em/mean": 0.5}, "sampled": {"n": 2}}})
    rows = dict(zip(*(list(column.cells) for column in table.columns[:2]), strict=True))
    assert list(rows) == ["exact match", "  nq", "  popqa", "  mean of the sets", "searches per question"]
    assert (rows["  nq"], rows["  mean of the sets"]) == ("0.750 [0.30, 0.90]", "0.500")


def test_the_report_of_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path / "run", [0, 0], [1, 0])
    both = {"greedy": result(0.5), "sampled": result(0.5)}
    folder.write_json(
        "summary.json",
        {
            "before": both,
            "after": both,
            "steps": 2,
            "seconds": {"warmup": 1.0},
            "aborted": 0,
            "logprob_diff_max": 1e-6,
            "warmup_steps": 0,
        },
    )
    folder.metrics.write_text('{"step": 1, "reward": 0.5, "em": 0.5, "searches": 1.0}\n')
    print_report(folder, load_config([]))
    out = capsys.readouterr().out
    assert "[red]answer[/red]" in out
    assert "bash cmd/eval.sh model=" in out
    assert (folder.path / "curves.png").stat().st_size > 0


def test_rates_that_cannot_be_read_do_not_spoil_a_run_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_version() -> Any:
        raise UserError("host_share: no such key")

    monkeypatch.setattr(report, "read_rates", of_another_version)
    [line] = prediction_lines(RunFolder.open(tmp_path / "run", "name: x\n", fresh=False), load_config([]))
    assert "host_share: no such key" in line
