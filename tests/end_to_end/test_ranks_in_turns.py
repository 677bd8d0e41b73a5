"""The layout of a node of several cards, on CPUs: ranks and rollout workers in pairs that take turns."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bench.faults.runs import without_timing
from tests.end_to_end.support import metrics, run, shared_memory, start, stop, wait_for_step, wait_until_clean

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

PAIRS = (
    "cluster.placement=shared",
    "cluster.learner_ranks=2",
    "rollout.workers=2",
    "cluster.learner_threads=1",
    "trainer.save_in_background=true",
)


def test_two_ranks_and_two_workers_in_turns_resume_a_killed_run_to_the_identical_result(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shm = shared_memory()
    run(whole, *PAIRS)
    wait_until_clean(whole, shm)
    process = start(killed, *PAIRS)
    wait_for_step(process, killed, 32)  # 30 steps of warm-up, then two of reinforcement
    stop(process, signal.SIGKILL)
    wait_until_clean(killed, shm)
    run(killed, *PAIRS)
    assert without_timing(metrics(killed)) == without_timing(metrics(whole))
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (killed, whole))
    assert ours["weights_hash"] == theirs["weights_hash"]
    assert theirs["logprob_diff_max"] < 1e-4
    assert {"busy/learner", "busy/rollout_0", "busy/rollout_1"} <= metrics(whole)[32].keys()
