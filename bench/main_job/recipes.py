"""AutoRefine, Search-R1 and ReSearch on two cores: the small twins of the recipes, one after another, and their curves.

Each run is `bash cmd/train.sh recipe=<system>_mini`. Runs and figures are those of ``summary.json``; the picture is
``docs/results/recipes.png``. ``--quick`` makes one run too short to learn and draws nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.quickstart import SHORT, read_summary
from search_agent.grid.members import Member, plan_grid
from search_agent.grid.run import run_grid
from verl.tracking.jsonl import read_metrics

SYSTEMS = {"autorefine_mini": "AutoRefine", "search_r1_mini": "Search-R1", "research_mini": "ReSearch"}
PICTURE = ROOT / "docs" / "results" / "recipes.png"


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs in a folder of their own; it stays if one of them has no result."""
    Path("runs").mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(prefix="recipes-", dir="runs")
    names = ["search_r1_mini"] if quick else list(SYSTEMS)
    arguments = [f"recipe={','.join(names)}", f"run_dir={folder}", *(SHORT if quick else [])]
    _, members = plan_grid(arguments)
    run_grid(arguments)
    finished = {member.config.name: member for member in members if member.finished}
    yield Figure.at_least("runs that finished", len(finished) / len(members), "share", 1.0)
    for name, member in finished.items():
        yield from figures(SYSTEMS[name], read_summary(member), judged=not quick)
    if not quick and finished:
        draw({SYSTEMS[name]: curves(member) for name, member in finished.items()}, PICTURE)
        print(f"picture: {PICTURE.relative_to(ROOT)}")
    if len(finished) == len(members):
        shutil.rmtree(folder)


def figures(system: str, summary: Mapping[str, Any], *, judged: bool) -> Iterator[Figure]:
    """What one run found on the clean test; without ``judged``, what needs learning is recorded only."""
    after = summary["after"]
    name = f"{system}: greedy EM after, clean test"
    em = after["greedy"]["em"]
    yield Figure.at_least(name, em, "share", 0.90).judged(judged)
    yield Figure(f"{system}: greedy EM before", summary["before"]["greedy"]["em"], "share")
    yield Figure(f"{system}: sampled EM before", summary["before"]["sampled"]["em"], "share")
    for key, label in (("em", "EM"), ("em_two_hop", "EM on two hops"), ("format_valid", "format valid")):
        yield Figure(f"{system}: sampled {label} after", after["sampled"][key], "share")
    yield Figure(f"{system}: searches a question after, greedy", after["greedy"]["searches"], "searches")
    yield Figure.at_most(f"{system}: aborted episodes", summary["aborted"], "episodes", 0)
    yield Figure.at_most(f"{system}: largest log-prob difference", summary["logprob_diff_max"], "nats", 1e-4)
    yield Figure(f"{system}: seconds of the run", sum(summary["seconds"].values()), "s")


def curves(member: Member) -> dict[str, list[tuple[int, float]]]:
    """(reinforcement step, value) of what the picture shows."""
    records = read_metrics(member.folder / "metrics.jsonl")
    begin = member.config.warmup.steps
    return {
        key: [(record["step"] - begin, record[key]) for record in records if key in record]
        for key in ("em", "searches", "dev/greedy/em", "dev/sampled/em")
    }


def draw(systems: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path) -> None:
    """Left: sampled EM in training, and dev EM; right: searches a question."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (score, searches) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for number, (system, lines) in enumerate(systems.items()):
        colour = f"C{number}"
        styles: list[tuple[Any, str, dict[str, Any]]] = [
            (score, "em", {"alpha": 0.35}),
            (score, "dev/sampled/em", {"marker": "o", "label": f"{system}, sampled"}),
            (score, "dev/greedy/em", {"marker": "s", "linestyle": "--", "label": f"{system}, greedy"}),
            (searches, "searches", {"label": system}),
        ]
        for axes, key, style in styles:
            if lines[key]:
                axes.plot(*zip(*lines[key], strict=True), color=colour, **style)
    score.set_ylabel("exact match on dev (faint: training, sampled)")
    score.set_ylim(0, 1.02)
    searches.set_ylabel("searches a question, training")
    searches.set_ylim(bottom=0)
    for axes in (score, searches):
        axes.set_xlabel("reinforcement step")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main(measure)
