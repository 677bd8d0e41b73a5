"""The figures of RARE's twins: the documents' gain has to reach a fifth, and KTO's margin has to be above 0."""

from __future__ import annotations

from typing import Any

import pytest

from bench.main_job.rare import figures, kto_figures
from search_agent.evaluation.statistics import Interval


def summary(em: float) -> dict[str, Any]:
    scores = {how: {"em": em} for how in ("greedy", "sampled")}
    return {"before": scores, "after": scores, "aborted": 0}


@pytest.mark.parametrize(("opened", "met"), [(0.7, True), (0.15, False)])
def test_the_documents_must_gain_a_fifth(opened: float, met: bool) -> None:
    found = {figure.figure: figure.holds for figure in figures(summary(opened), summary(0.0), judged=True)}
    assert found["gain of the documents, greedy EM"] is met
    unjudged = [figure for figure in figures(summary(opened), summary(0.0), judged=False) if figure.reach == ">= 0.2"]
    assert unjudged == []


@pytest.mark.parametrize(("low", "met"), [(0.1, True), (-0.1, False)])
def test_the_margin_is_told_with_its_interval_and_the_change_whatever_its_sign(low: float, met: bool) -> None:
    margins = {"margin": {"estimate": 0.3, "low": low, "high": 0.5}}
    found = {each.figure: each for each in kto_figures(summary(0.5), Interval(-0.1, -0.2, 0.0, 9), margins)}
    assert found["KTO: change of greedy EM"].value == -0.1
    assert found["KTO: change of greedy EM"].holds is None
    assert (found["KTO: margin on outputs held out, lower end"].value, found["KTO: the margin is above 0"].holds) == (
        low,
        met,
    )
