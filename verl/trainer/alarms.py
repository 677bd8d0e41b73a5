"""Collapse alarms in the loop: a warning when one begins, a metric while it sounds, its state with the run's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict

from verl.algorithms.alarms import AlarmState, Signal, observe
from verl.algorithms.control_config import AlarmConfig
from verl.trainer.state import LoopState

log = logging.getLogger(__name__)

MIN_CALLS = 8
"""Fewer calls that all show nothing may be chance, and a young policy asks nonsense."""


def watch(metrics: Mapping[str, float], state: LoopState, config: AlarmConfig) -> dict[str, float]:
    """``alarm/<signal>`` = 1 for each alarm that sounds at this step; ``state.alarms`` moves on."""
    before = AlarmState(
        {
            name: Signal(signal["mean"], signal["best"], int(signal["beyond_steps"]))
            for name, signal in state.alarms.items()
        }
    )
    after, sounding = observe(before, metrics, config)
    state.alarms = {name: asdict(signal) for name, signal in after.signals.items()}
    for name, message in sounding.items():
        if after.signals[name].beyond_steps == config.patience_steps:
            log.warning("warning: step %d: %s", state.step + 1, message)
    calls = round(metrics.get("calls", 0.0) * metrics.get("n", 0.0))
    if calls >= MIN_CALLS and metrics["empty_calls"] == 1.0:
        log.warning(
            "warning: step %d: each of its %d calls showed nothing: has the retriever lost its index, or found passages"
            " that no observation can hold?",
            state.step + 1,
            calls,
        )
        sounding = {**sounding, "empty_calls": ""}
    return {f"alarm/{name}": 1.0 for name in sounding}
