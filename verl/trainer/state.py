"""Where the loop stands: everything besides the learner's own state that a killed run needs to go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Best:
    """The best checkpoint so far by one measure."""

    score: float
    step: int


@dataclass
class LoopState:
    """Saved as ``loop.json`` in each checkpoint."""

    phase: Literal["warmup", "train"] = "warmup"
    step: int = 0
    """Steps of the phase that are done; in ``train`` it is also the version of the weights."""
    outstanding: list[int] = field(default_factory=list)
    """Groups started and not trained on: a resumed run starts them again."""
    next_group: int = 0
    best: dict[str, Best] = field(default_factory=dict)
    """By link name (``best_dev``, ``best_reward``)."""
    recent_rewards: list[float] = field(default_factory=list)
    """Mean training reward of each step since the last evaluation."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage over all starts of the run."""
    kl_coefficient: float | None = None
    """Where the adaptive coefficient of the KL in the reward stands; None before the first step."""
    budget_price: float | None = None
    """Where the price of ``trainer.budget`` stands; None before the first step."""
    alarms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The collapse alarms' signals, by metric."""
    aborted: int = 0
    """Training episodes that infrastructure ended."""
    logprob_diff_max: float = 0.0
    """Largest |trainer - rollout| log-prob of any step."""
    _running: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    """When the stages that are being timed began."""

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` reads; stages that are still running count up to now."""
        data = asdict(self)
        now = time.monotonic()
        for stage, started in data.pop("_running").items():
            data["seconds"][stage] = data["seconds"].get(stage, 0.0) + now - started
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LoopState:
        """Read a checkpoint's state. Raises TypeError on unknown keys."""
        best = {name: Best(**entry) for name, entry in data["best"].items()}
        return cls(**{**data, "best": best})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall time to a stage."""
        self._running[stage] = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - self._running.pop(stage)
