"""Where a run's metrics go, besides the run folder."""

from __future__ import annotations

from dataclasses import dataclass

from verl.errors import UserError


@dataclass(frozen=True)
class TrackingConfig:
    """Trackers to feed. ``metrics.jsonl`` in the run folder is always written: resuming and curves read it."""

    console: bool = True
    """Progress on the screen; plain lines where there is no terminal."""
    wandb: bool = False
    """Weights & Biases; every ``WANDB_*`` variable is honoured (``WANDB_MODE=offline`` needs no account)."""
    tensorboard: bool = False
    """Event files in ``tensorboard/`` of the run folder."""
    project: str = "sleuth"
    """Project of the W&B runs, where ``WANDB_PROJECT`` is not set."""

    def __post_init__(self) -> None:
        if not self.project:
            raise UserError("project is empty: write a name, say sleuth")
