"""The quick start's figures are those of the worst seed."""

from __future__ import annotations

from typing import Any

from bench.main_job.quickstart import figures


def summary(after: float, two_hop_before: float) -> dict[str, Any]:
    before = {"format_valid": 1.0, "em_one_hop": 0.7, "em": 0.4, "em_two_hop": two_hop_before}
    learned = {"format_valid": 1.0, "em_one_hop": 1.0, "em": after, "em_two_hop": after}
    return {
        "before": {"greedy": before, "sampled": before},
        "after": {"greedy": learned, "sampled": learned},
        "logprob_diff_max": 1e-6,
        "aborted": 0,
        "seconds": {"warmup": 60.0, "reinforcement": 100.0},
    }


def test_one_seed_that_fails_makes_the_figure_fail() -> None:
    good, bad = summary(0.97, 0.2), summary(0.7, 0.4)
    assert all(figure.holds is not False for figure in figures([good, good], judged=True))
    failing = {figure.figure for figure in figures([good, bad], judged=True) if figure.holds is False}
    assert failing == {
        "after greedy em, worst seed",
        "after greedy em_two_hop, worst seed",
        "after sampled em, worst seed",
        "before sampled em_two_hop, worst seed",
    }


def test_a_quick_run_is_recorded_and_not_judged() -> None:
    judged = [figure for figure in figures([summary(0.0, 0.9)], judged=False) if figure.reach is not None]
    assert {figure.unit for figure in judged} == {"nats", "episodes"}
