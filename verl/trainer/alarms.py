"""Collapse alarms: a state machine over the step metrics that says when training looks like failing.

Each signal is smoothed, compared with its bound, and sounds once it has stayed beyond it for ``patience_steps`` steps
in a row, and again each step until it returns. An absent signal (no good sample in a step, say) leaves its state as
it is. The state is plain data, saved with the run's: it resumes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from verl.algorithms.control_config import AlarmConfig
from verl.trainer.state import LoopState

log = logging.getLogger(__name__)

MIN_CALLS = 8
"""Fewer calls that all show nothing may be chance, and a young policy asks nonsense."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One smoothed metric."""

    mean: float
    best: float
    """The highest smoothed value so far."""
    beyond_steps: int = 0
    """Steps in a row beyond the bound."""


Signals = Mapping[str, Signal]
"""By metric name; empty at the start of a run."""


def observe(before: Signals, metrics: Mapping[str, float], config: AlarmConfig) -> tuple[Signals, dict[str, str]]:
    """The next signals, and by metric name the message of each alarm that sounds.

    Reads ``good_logprob``, ``entropy``, ``kl_old``, ``kl_reference`` (as ``marks.final_metrics`` names them) and
    ``uniform_groups``.
    """
    signals = dict(before)
    alarms: dict[str, str] = {}
    for name in ("good_logprob", "entropy", "kl_old", "kl_reference", "uniform_groups"):
        if name not in metrics:
            continue
        signal = _smooth(signals.get(name), metrics[name], config)
        complaint = _complaint(name, signal, config)
        signal = replace(signal, beyond_steps=signal.beyond_steps + 1 if complaint else 0)
        signals[name] = signal
        if signal.beyond_steps >= config.patience_steps:
            alarms[name] = f"{complaint} for {signal.beyond_steps} steps"
    return signals, alarms


def _smooth(past: Signal | None, value: float, config: AlarmConfig) -> Signal:
    if past is None:
        return Signal(value, value)
    mean = config.smoothing * past.mean + (1 - config.smoothing) * value
    return Signal(mean, max(past.best, mean), past.beyond_steps)


def _complaint(name: str, signal: Signal, config: AlarmConfig) -> str:
    """What is wrong with the signal, empty if nothing is."""
    value = signal.mean
    match name:
        case "good_logprob" if value < signal.best - config.good_logprob_drop:
            return f"good samples grow unlikely: log-prob a token {value:.3f}, {signal.best:.3f} at best"
        case "entropy" if value < config.entropy_below:
            return f"the policy stopped exploring: entropy {value:.4f} nats, below {config.entropy_below}"
        case "entropy" if value > config.entropy_above:
            return f"the policy is losing its language: entropy {value:.3f} nats, above {config.entropy_above}"
        case "kl_old" | "kl_reference" if value > config.kl_above:
            return f"the policy runs away: {name} {value:.3f} nats, above {config.kl_above}"
        case "uniform_groups" if value > config.uniform_groups_above:
            return f"groups have nothing to compare: {value:.0%} have equal rewards"
    return ""


def watch(metrics: Mapping[str, float], state: LoopState, config: AlarmConfig) -> dict[str, float]:
    """``alarm/<signal>`` = 1 for each alarm that sounds at this step; ``state.alarms`` moves on."""
    after, sounding = observe({name: Signal(**kept) for name, kept in state.alarms.items()}, metrics, config)
    state.alarms = {name: asdict(signal) for name, signal in after.items()}
    for name, message in sounding.items():
        if after[name].beyond_steps == config.patience_steps:
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
