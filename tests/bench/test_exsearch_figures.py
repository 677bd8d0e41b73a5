"""The figures of ExSearch's twin: what the weights gain over the control, and curves over equal numbers of episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.main_job.exsearch import RUNS, curves, draw, figures
from search_agent.console.command import load_config
from search_agent.grid.members import Member


def summary(em: float) -> dict[str, Any]:
    scores = {how: {"em": em} for how in ("greedy", "sampled")}
    return {"before": scores, "after": scores, "aborted": 0}


@pytest.mark.parametrize(("ours", "met"), [(0.7, True), (0.5, False)])
def test_the_weights_must_gain_a_fifth_over_the_control(ours: float, met: bool) -> None:
    found = list(figures({"exsearch_mini": summary(ours), "exsearch_mini_uniform": summary(0.4)}, judged=True))
    gains = [figure for figure in found if figure.figure.startswith("gain")]
    assert [figure.holds for figure in gains] == [met, met]


def test_every_run_plays_as_many_episodes() -> None:
    trainers = [load_config([f"recipe={name}"]).trainer for name in RUNS]
    assert {t.steps * t.prompts_per_step * t.samples_per_prompt for t in trainers} == {7680}


def test_curves_count_episodes_from_the_end_of_the_warm_up(tmp_path: Path) -> None:
    rows = [
        {"step": 900, "dev/greedy/em": 0.4},
        {"step": 901, "em": 0.5},
        {"step": 902, "dev/greedy/em": 0.9, "dev/sampled/em": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = curves(Member((), (), tmp_path, load_config(["recipe=exsearch_mini"])))
    assert found == {"greedy": [(0, 0.4), (5120, 0.9)], "sampled": [(5120, 0.5)]}
    draw({"a": found}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
