"""ExSearch's loop, killed between two iterations and within one: it resumes to the identical result."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from bench.faults.runs import left_behind, shared_memory, without_timing
from tests.end_to_end.support import metrics, run, start, stop, wait_for_step
from verl.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

WARMUP, STEPS = 60, 3
KEYS = (
    "recipe=exsearch_mini",
    f"warmup.steps={WARMUP}",
    f"trainer.steps={STEPS}",
    "trainer.prompts_per_step=24",
    "learner.updates_per_batch=6",
    # As the published program: passages chosen in chats of their own, warm-up rows among the episodes, two passes, a
    # new optimizer for each iteration.
    "protocol.select=chat",
    "trainer.mixed_traces=32",
    "trainer.passes=2",
    "trainer.fresh_optimizer=true",
)


def test_a_loop_killed_between_and_within_iterations_comes_to_the_same_weights(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, *KEYS)
    for iteration, wait_s in ((1, 0.0), (2, 1.0)):  # as soon as it is recorded; while the next one is played
        process = start(broken, *KEYS)
        wait_for_step(process, broken, WARMUP + iteration)
        deadline = time.monotonic() + 60
        while wait_s and not (broken / "checkpoints" / f"step_{WARMUP + iteration:06d}" / "loop.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(wait_s)
        stop(process, signal.SIGKILL)
        processes, _ = left_behind(broken, shared_memory(broken))
        assert not processes
        assert not (broken / "summary.json").exists()
    run(broken, *KEYS)
    assert without_timing(metrics(broken)) == without_timing(metrics(whole))
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (broken, whole))
    assert ours["weights_hash"] == theirs["weights_hash"]
    assert (ours["before"], ours["after"]) == (theirs["before"], theirs["after"])
    for step in range(1, STEPS + 1):
        mine, other = (RunFolder(folder).read_trajectories("train", step) for folder in (broken, whole))
        pairs = zip(mine, other, strict=True)
        assert all(left.token_ids().tolist() == right.token_ids().tolist() for left, right in pairs)
    played = list(RunFolder(whole).read_trajectories("train", 1))
    assert any(segment.beside for episode in played for segment in episode.segments)
    learned = [row for row in metrics(whole) if "largest_weight" in row]
    assert [row["trained_episodes"] > 0 for row in learned] == [True] * STEPS
