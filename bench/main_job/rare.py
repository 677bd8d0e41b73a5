"""RARE's twins on two cores: learned with the documents in the prompt, learned without them, and KTO after the former.

Each run is `bash cmd/train.sh recipe=rare_mini` (``data.documents=false``, ``recipe=rare_kto_mini``). What KTO moved is
measured on the model's own answers to the test questions, which it did not learn from. ``--quick`` makes runs too short
to learn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.harness import Figure, main
from bench.main_job.runs import made_runs, new_folder, read_summary, share_finished
from search_agent.evaluation.compare import compare
from search_agent.evaluation.outcomes import read_outcomes

SHORT = ["warmup.steps=20", "evaluation.dev_tasks=16", "evaluation.test_tasks=16"]


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs one after another; a folder stays if a run in it has no result."""
    short = SHORT if quick else []
    with made_runs(new_folder("rare"), ["recipe=rare_mini", "data.documents=true,false", *short]) as twins:
        yield share_finished(twins)
        if not all(member.finished for member in twins):
            return
        opened, closed = twins
        yield from figures(read_summary(opened), read_summary(closed), judged=not quick)
        first = opened.folder / "best_dev"
        with made_runs(new_folder("rare_kto"), ["recipe=rare_kto_mini", f"model='{first}'", *short]) as [kto]:
            if kto.finished:
                before, after = (read_outcomes(kto.folder, f"test-{when}-greedy") for when in ("before", "after"))
                gain = compare([before], [after]).scores["em"].difference
                yield from kto_figures(read_summary(kto), gain, None if quick else margin(kto.folder, first))


def figures(opened: Mapping[str, Any], closed: Mapping[str, Any], *, judged: bool) -> Iterator[Figure]:
    """EM of both on the clean test, each asked as it learned, and the gain of the documents."""
    for label, summary in (("with documents", opened), ("without", closed)):
        for how in ("greedy", "sampled"):
            after = summary["after"][how]
            yield Figure(f"{label}: {how} EM", after["em"], "share")
        yield Figure.at_most(f"{label}: aborted episodes", summary["aborted"], "episodes", 0)
    gain = opened["after"]["greedy"]["em"] - closed["after"]["greedy"]["em"]
    yield Figure.at_least("gain of the documents, greedy EM", gain, "share", 0.2).judged(judged)


def kto_figures(summary: Mapping[str, Any], gain: Any, margins: Mapping[str, Any] | None) -> Iterator[Figure]:
    """EM before and after KTO, its change with the paired interval, and the margin with its own."""
    for when in ("before", "after"):
        yield Figure(f"KTO: greedy EM {when}", summary[when]["greedy"]["em"], "share")
    yield from _interval("KTO: change of greedy EM", gain.estimate, gain.low, gain.high, "share")
    if margins is not None:
        found = margins["margin"]
        yield from _interval("KTO: margin on outputs held out", found["estimate"], found["low"], found["high"], "nats")
        yield Figure.at_least("KTO: the margin is above 0", float(found["low"] > 0), "yes", 1.0)


def margin(run: Path, reference: Path) -> dict[str, Any]:
    """What ``preprocess.rare.margin`` prints of a run, over the answers that the model gave before it learned."""
    words = [f"model={run / 'best_dev'}", f"reference={reference}"]
    words += [f"labelled={run / 'trajectories' / 'test-before-sampled_000000.jsonl.gz'}"]
    command = [sys.executable, "-m", "preprocess.rare.margin", *words]
    told: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return told


def _interval(label: str, estimate: float, low: float, high: float, unit: str) -> Iterator[Figure]:
    yield Figure(label, estimate, unit)
    yield Figure(f"{label}, lower end", low, unit)
    yield Figure(f"{label}, upper end", high, unit)


if __name__ == "__main__":
    main(measure)
