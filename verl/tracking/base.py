"""The interface of a tracker, and the one that feeds all others.

Contract: steps never fall; two calls with the same step add to it; the first call after a start tells where the run
resumed, and a tracker forgets what an earlier, killed process recorded from that step on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from verl.errors import UserError
from verl.tracking.config import TrackingConfig


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record named numbers of one step."""

    def close(self) -> None:
        """Finish writing. Called once, last, also after an error."""


class Combined:
    """Gives everything to several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record in each tracker."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        """Close each tracker, the last one first, even if one of them fails."""
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)


def make_tracker(
    folder: Path,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    config: TrackingConfig | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> Tracker:
    """The trackers that ``config`` asks for, for the run in ``folder``.

    ``total_steps`` counts warm-up and reinforcement. ``run_config`` is what W&B shows as the run's configuration.
    Raises UserError if a tracker's package is not installed or it cannot log in.
    """
    from verl.tracking.jsonl import JsonlTracker

    config = config or TrackingConfig()
    for package, wanted in (("wandb", config.wandb), ("tensorboard", config.tensorboard)):
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(f"tracking.{package}=true needs the package {package}: pip install {package}")
    trackers: list[Tracker] = [JsonlTracker(folder / "metrics.jsonl")]
    if config.wandb:
        from verl.tracking.wandb_tracker import WandbTracker

        trackers.append(WandbTracker(folder, config.project, run_config or {}))
    if config.tensorboard:
        from verl.tracking.tensorboard_tracker import TensorboardTracker

        trackers.append(TensorboardTracker(folder / "tensorboard"))
    if config.console:
        from verl.tracking.console import ConsoleTracker

        trackers.append(ConsoleTracker(total_steps, warmup_steps))
    return Combined(trackers)
