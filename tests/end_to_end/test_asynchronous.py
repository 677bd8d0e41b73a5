"""A whole asynchronous run: episodes go on across weight updates, within the bound, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.faults.campaign import differences
from tests.end_to_end.support import metrics, run
from verl.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, STALENESS = 6, 2


def test_tokens_of_several_versions_are_trained_on_corrected_and_within_the_bound(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    keys = ["deterministic=false", f"trainer.max_staleness={STALENESS}", f"trainer.steps={STEPS}", "warmup.steps=2"]
    run(run_dir, *keys, "environment.max_tokens_per_turn=200")  # long turns of a model that knows nothing
    assert differences(run_dir, run_dir, STEPS, identical=False) == []
    across, ages = 0, set()
    for step in range(1, STEPS + 1):
        for trajectory in RunFolder(run_dir).read_trajectories("train", step):
            versions = np.asarray(trajectory.versions())[trajectory.policy_mask()]
            assert (np.diff(versions) >= 0).all(), "later tokens come from later weights"
            across += len(set(versions.tolist())) > 1
            ages.add(step - 1 - int(versions.min()))
    assert across > 0, "no episode went on across an update"
    assert ages & {1, 2}, "nothing was played ahead"
    assert max(ages) <= STALENESS
    assert all("effective_sample_share" in row for row in metrics(run_dir) if "reward" in row)
