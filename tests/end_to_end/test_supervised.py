"""Supervised fine-tuning alone: the real command, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.support import metrics, run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_a_supervised_run_is_measured_before_and_after_and_leaves_its_last_weights(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(
        run_dir,
        "recipe=sft_mini",
        "warmup.steps=0",
        "warmup.epochs=1",
        "warmup.sequences_per_step=200",
        "warmup.optimizer.warmup_steps=5",
        "trainer.steps=0",
    )
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["warmup_steps"]) == (0, 45)
    assert summary["before"]["greedy"]["n"] == summary["after"]["greedy"]["n"] == 10
    rows = [row for row in metrics(run_dir) if "warmup/nll" in row]
    assert len(rows) == 45
    assert rows[-1]["warmup/nll"] < rows[0]["warmup/nll"]
    assert rows[-1]["warmup/learning_rate"] < 0.05 * max(row["warmup/learning_rate"] for row in rows)
    assert (run_dir / "best_dev" / "model.safetensors").is_file()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000045"]
