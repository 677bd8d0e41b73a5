"""The figures and the picture of the small twins, from what a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.main_job.recipes import curves, draw, figures
from search_agent.console.command import load_config
from search_agent.grid.members import Member


def summary(em: float) -> dict[str, Any]:
    found = {"em": em, "em_two_hop": em, "format_valid": 1.0, "searches": 1.5}
    both = {"greedy": found, "sampled": found}
    return {"before": both, "after": both, "aborted": 0, "logprob_diff_max": 1e-6, "seconds": {"warmup": 2.0}}


def test_a_system_that_does_not_reach_its_figure_fails() -> None:
    held = {figure.figure: figure.holds for figure in figures("X", summary(0.9), judged=True)}
    assert all(holds is not False for holds in held.values())
    failed = [figure.figure for figure in figures("X", summary(0.89), judged=True) if figure.holds is False]
    assert failed == ["X: greedy EM after, clean test"]
    assert all(figure.holds is not False for figure in figures("X", summary(0.0), judged=False))


def test_the_picture_counts_steps_from_the_beginning_of_reinforcement(tmp_path: Path) -> None:
    rows = [
        {"step": 900, "warmup/loss": 0.1, "dev/greedy/em": 0.4, "dev/sampled/em": 0.3},
        {"step": 901, "em": 0.5, "searches": 1.0},
        {"step": 902, "em": 0.6, "searches": 1.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = curves(Member((), (), tmp_path, load_config(["recipe=search_r1_mini"])))
    assert lines["em"] == [(1, 0.5), (2, 0.6)]
    assert lines["dev/greedy/em"] == [(0, 0.4)]
    draw({"Search-R1": lines}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
