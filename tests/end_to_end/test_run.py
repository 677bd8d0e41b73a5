"""The real loop: real vLLM, Ray, FSDP2 and retrieval server, shortened; killed, resumed and compared."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.faults.runs import without_timing
from tests.end_to_end.support import ROOT, metrics, run, shared_memory, start, stop, wait_for_step
from tests.end_to_end.support import wait_until_clean as wait_until_clean_after
from verl.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BUDGET = ("trainer.budget.part=searches", "trainer.budget.rate=0.1", "trainer.budget.limit=0.1")
"""A price that moves with each step: what a resumed run must have kept."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run from start to end, undisturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    before = shared_memory()
    run(run_dir, *BUDGET)
    wait_until_clean_after(run_dir, before, timeout_s=0)
    return run_dir


def test_a_run_leaves_a_whole_run_folder(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["aborted"] == 0
    assert summary["logprob_diff_max"] < 1e-4
    for when in ("before", "after"):
        for how in ("greedy", "sampled"):
            result = summary[when][how]
            assert result["n"] == 10
            assert {"em", "em_one_hop", "em_two_hop", "format_valid"} <= set(result)
    assert {"warmup", "before", "reinforcement", "after"} <= set(summary["seconds"])
    assert (whole / "curves.png").stat().st_size > 10_000
    trained = metrics(whole, "trained.jsonl")
    assert [row["groups"] for row in trained] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert all(row["staleness"] == 0 and row["episodes"] == 16 for row in trained)
    steps = [row for row in metrics(whole) if "reward" in row]
    assert len(steps) == 4
    assert all(math.isfinite(row["loss"]) and row["logprob_diff_mean"] < 1e-5 for row in steps)


def test_its_trajectories_hold_what_was_sampled(whole: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole / "best_dev")
    trajectories = list(RunFolder(whole).read_trajectories("train", 4))
    assert len(trajectories) == 16
    for trajectory in trajectories:
        assert trajectory.outcome in ("finished", "truncated")
        assert trajectory.reward is not None
        for segment in trajectory.generated:
            assert tokenizer.decode(segment.token_ids.tolist()) == segment.text
            assert set(segment.versions.tolist()) == {3}, "step 4 is sampled by the weights of three updates"


def test_its_best_checkpoint_loads_in_transformers(whole: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole / "best_dev")
    tokenizer = AutoTokenizer.from_pretrained(whole / "best_dev")
    ids = tokenizer("Question: who", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], model.config.vocab_size)


def test_the_same_command_prints_the_table_of_a_finished_run(whole: Path) -> None:
    before = metrics(whole)
    text = run(whole, *BUDGET)
    assert text.count("clean test, 10 questions") == 2, "once by the run, once by the second command"
    assert metrics(whole) == before, "nothing was trained again"


def test_evaluating_the_run_plays_its_best_weights(whole: Path) -> None:
    command = [sys.executable, "-m", "search_agent.evaluate", f"model={whole}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr
    assert "exact match" in result.stdout
    [record] = [line.split()[1] for line in result.stdout.replace(";", " ").splitlines() if line.startswith("record:")]
    evaluation = json.loads((ROOT / record).read_text())
    expected = json.loads((whole / "summary.json").read_text())["after"]["greedy"]
    assert evaluation["greedy"]["em"] == expected["em"]
    assert evaluation["greedy"]["n"] == expected["n"] == 10


def test_a_killed_run_resumes_to_the_identical_result(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shm = shared_memory()
    process = start(run_dir, *BUDGET)
    wait_for_step(process, run_dir, 32)  # 30 steps of warm-up, then two of reinforcement
    stop(process, signal.SIGKILL)
    wait_until_clean_after(run_dir, shm)
    run(run_dir, *BUDGET)
    assert without_timing(metrics(run_dir)) == without_timing(metrics(whole))
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run_dir, whole))
    assert ours["weights_hash"] == theirs["weights_hash"]
    assert ours["after"] == theirs["after"]
    assert ours["before"] == theirs["before"]
    mine, other = (list(RunFolder(folder).read_trajectories("train", 4)) for folder in (run_dir, whole))
    for left, right in zip(mine, other, strict=True):
        assert left.token_ids().tolist() == right.token_ids().tolist()
        assert left.reward == right.reward


def test_ctrl_c_leaves_nothing_behind_and_says_how_to_go_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shm = shared_memory()
    process = start(run_dir, *BUDGET)
    wait_for_step(process, run_dir, 3)
    stop(process, signal.SIGINT)
    wait_until_clean_after(run_dir, shm)
    assert "run the same command to go on" in Path(f"{run_dir}.out").read_text()


def test_a_finished_run_goes_on_when_its_steps_grow(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir, symlinks=True)
    run(run_dir, *BUDGET, "trainer.steps=5", "evaluation.metric=em")
    summary = json.loads((run_dir / "summary.json").read_text())
    first = json.loads((whole / "summary.json").read_text())
    assert (summary["steps"], summary["before"]) == (5, first["before"])
    assert [row["groups"][0] for row in metrics(run_dir, "trained.jsonl")] == [0, 4, 8, 12, 16]
    assert without_timing(metrics(run_dir))[: len(metrics(whole))] == without_timing(metrics(whole))
    assert len(list(RunFolder(run_dir).read_trajectories("train", 5))) == 16
