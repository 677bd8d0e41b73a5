"""ExSearch's twin, the control that ignores the weights, and GRPO on as many episodes, from one warm-up.

Each run is `bash cmd/train.sh recipe=exsearch_mini` (and ``_uniform``, ``_grpo``). The picture is
``docs/results/exsearch.png``. ``--quick`` makes one run too short to learn and draws nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.quickstart import SHORT, read_summary
from search_agent.config import RunConfig
from search_agent.grid.members import plan_grid
from search_agent.grid.run import run_grid
from verl.tracking.jsonl import read_metrics

RUNS = {
    "exsearch_mini": "softmax weights",
    "exsearch_mini_uniform": "weights ignored",
    "exsearch_mini_grpo": "GRPO",
}
PICTURE = ROOT / "docs" / "results" / "exsearch.png"
Curve = Sequence[tuple[int, float]]


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs in a folder of their own; it stays if one of them has no result."""
    Path("runs").mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(prefix="exsearch-", dir="runs")
    names = ["exsearch_mini"] if quick else list(RUNS)
    arguments = [f"recipe={','.join(names)}", f"run_dir={folder}", *(SHORT if quick else [])]
    _, members = plan_grid(arguments)
    run_grid(arguments)
    finished = {member.config.name: member for member in members if member.finished}
    yield Figure.at_least("runs that finished", len(finished) / len(members), "share", 1.0)
    yield from figures({name: read_summary(member) for name, member in finished.items()}, judged=not quick)
    if not quick and finished:
        draw({RUNS[name]: curves(member.folder, member.config) for name, member in finished.items()}, PICTURE)
        print(f"picture: {PICTURE.relative_to(ROOT)}")
    if len(finished) == len(members):
        shutil.rmtree(folder)


def figures(summaries: Mapping[str, Mapping[str, Any]], *, judged: bool) -> Iterator[Figure]:
    """EM on the clean test before and after; what the weights gain over the control, if both runs are there."""
    for name, summary in summaries.items():
        for when in ("before", "after"):
            for how in ("greedy", "sampled"):
                yield Figure(f"{RUNS[name]}: {how} EM {when}", summary[when][how]["em"], "share")
        yield Figure.at_most(f"{RUNS[name]}: aborted episodes", summary["aborted"], "episodes", 0)
    if {"exsearch_mini", "exsearch_mini_uniform"} <= set(summaries):
        for how in ("greedy", "sampled"):
            ours, control = (summaries[name]["after"][how]["em"] for name in ("exsearch_mini", "exsearch_mini_uniform"))
            label = f"gain of the weights over the control, {how}"
            yield Figure.at_least(label, ours - control, "share", 0.2).judged(judged)


def curves(folder: Path, config: RunConfig) -> dict[str, Curve]:
    """(episodes played, value) of EM on dev, from the warm-up's end."""
    records = read_metrics(folder / "metrics.jsonl")
    size = config.trainer.prompts_per_step * config.trainer.samples_per_prompt
    return {
        how: [
            ((record["step"] - config.warmup.steps) * size, record[f"dev/{how}/em"])
            for record in records
            if f"dev/{how}/em" in record
        ]
        for how in ("greedy", "sampled")
    }


def draw(runs: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """EM on dev over the episodes played, sampled and greedy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for axes, how in zip(panels, ("sampled", "greedy"), strict=True):
        for label, lines in runs.items():
            if lines[how]:
                axes.plot(*zip(*lines[how], strict=True), marker="o", label=label)
        axes.set_title(how)
        axes.set_xlabel("episodes played after the warm-up")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    panels[0].set_ylabel("exact match on dev")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main(measure)
