"""Collapse alarms: they sound on a collapse, stay silent on a healthy run, and resume from their state."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from verl.algorithms.control_config import AlarmConfig
from verl.trainer.alarms import Signals, observe

CONFIG = AlarmConfig(smoothing=0.5, patience_steps=3)


def sounded(steps: Iterable[dict[str, float]], config: AlarmConfig = CONFIG) -> list[dict[str, str]]:
    state: Signals = {}
    heard = []
    for metrics in steps:
        state, alarms = observe(state, metrics, config)
        heard.append(alarms)
    return heard


@pytest.mark.parametrize(
    ("name", "healthy", "collapsed", "words"),
    [
        ("good_logprob", -0.4, -4.0, "grow unlikely"),
        ("entropy", 0.8, 0.0, "stopped exploring"),
        ("entropy", 0.8, 30.0, "losing its language"),
        ("kl_old", 0.01, 5.0, "runs away"),
        ("kl_reference", 0.01, 5.0, "runs away"),
        ("uniform_groups", 0.4, 1.0, "nothing to compare"),
    ],
)
def test_a_collapse_sounds_after_the_patience_and_stops_with_recovery(
    name: str, healthy: float, collapsed: float, words: str
) -> None:
    heard = sounded([{name: healthy}] * 5 + [{name: collapsed}] * 20 + [{name: healthy}] * 20)
    assert not any(heard[:7])  # silent while healthy, and for patience_steps - 1 steps at least
    assert words in heard[24][name]
    assert not heard[-1]


def test_one_bad_step_is_not_a_collapse() -> None:
    steps = [{"entropy": 0.8}] * 5 + [{"entropy": 0.0}] + [{"entropy": 0.8}] * 5
    assert not any(sounded(steps))


def test_likelihood_that_only_rises_never_sounds() -> None:
    assert not any(sounded([{"good_logprob": -5.0 + 0.2 * step} for step in range(25)]))


def test_an_absent_signal_keeps_its_state() -> None:
    state, _ = observe({}, {"entropy": 0.0}, CONFIG)
    after, alarms = observe(state, {"kl_old": 0.0}, CONFIG)
    assert after["entropy"] == state["entropy"]
    assert alarms == {}


def test_a_run_cut_in_two_hears_the_same() -> None:
    steps = [{"kl_old": 0.1 * step} for step in range(20)]
    state: Signals = {}
    for metrics in steps[:9]:
        state, _ = observe(state, metrics, CONFIG)
    resumed: Signals = dict(state)
    for metrics in steps[9:]:
        resumed, alarms = observe(resumed, metrics, CONFIG)
    assert alarms == sounded(steps)[-1]
    assert alarms
