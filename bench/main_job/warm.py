"""One finished warm-up, of the quick start or of another recipe, for benches whose runs all begin with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.harness import ROOT


def warm_model(run_dir: Path, *, quick: bool, recipe: str = "quickstart") -> str:
    """``model=`` of a warmed-up model, made in ``run_dir`` (minutes); ``quick``: the cold model.

    ``SLEUTH_BENCH_WARM`` names a finished one of the quick start instead. Reinforcement starts with a fresh optimizer,
    so a run with ``model=FOLDER warmup.steps=0`` does what the whole run does after its warm-up.
    """
    if recipe == "quickstart" and (given := os.environ.get("SLEUTH_BENCH_WARM")):
        return str(Path(given).resolve())
    if quick:
        return "embedded"
    short = ["trainer.steps=0", "evaluation.dev_tasks=8", "evaluation.test_tasks=8", f"run_dir={run_dir}"]
    command = [sys.executable, "-m", "search_agent.train", f"recipe={recipe}", *short]
    subprocess.run(command, cwd=ROOT, check=True)
    return str((run_dir / "best_dev").resolve())
