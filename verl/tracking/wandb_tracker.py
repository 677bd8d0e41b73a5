"""Weights & Biases. A resumed run folder goes on in the same W&B run, whose id the folder keeps.

The library reads its ``WANDB_*`` variables itself; nothing given here overrides one that is set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl.errors import UserError

# What we would choose, and the end of the variable by which the user may have chosen it already.
_VARIABLES = {"project": "PROJECT", "name": "NAME", "dir": "DIR", "id": "RUN_ID", "resume": "RESUME"}


class WandbTracker:
    """One W&B run for one run folder."""

    def __init__(self, folder: Path, project: str, run_config: Mapping[str, Any]) -> None:
        import wandb

        id_file = folder / "wandb_id"
        known = id_file.read_text().strip() if id_file.exists() else None
        offered = {"project": project, "name": folder.name, "dir": str(folder), "id": known, "resume": "allow"}
        given: dict[str, Any] = {
            key: value for key, value in offered.items() if f"WANDB_{_VARIABLES[key]}" not in os.environ
        }
        try:
            self._run = wandb.init(config=dict(run_config), **given)
        except (wandb.errors.Error, TimeoutError) as error:
            remedy = "run `wandb login`, or set WANDB_MODE=offline"
            raise UserError(f"tracking.wandb: {' '.join(str(error).split())}; {remedy}") from error
        id_file.write_text(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add to the row of ``step``; W&B ignores steps that it already has."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Upload (or, offline, store) what is left, and end W&B's own process: nothing of a run outlives it."""
        import wandb

        self._run.finish()
        wandb.teardown()
