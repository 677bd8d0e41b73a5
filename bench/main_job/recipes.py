"""AutoRefine, Search-R1 and ReSearch on two cores: the small twins of the recipes, one after another, and their curves.

Each run is `bash cmd/train.sh recipe=<system>_mini`. Runs and figures are those of ``summary.json``; the picture is
``docs/results/recipes.png``. ``--quick`` makes one run too short to learn and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.runs import SHORT, by_recipe, made_runs, new_folder, read_curve, read_summary, share_finished
from search_agent.console.screen import new_picture, save_picture
from search_agent.grid.members import Member

SYSTEMS = {"autorefine_mini": "AutoRefine", "search_r1_mini": "Search-R1", "research_mini": "ReSearch"}
PICTURE = ROOT / "docs" / "results" / "recipes.png"


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs, compare their summaries with the figures, and draw their curves together."""
    names = ["search_r1_mini"] if quick else list(SYSTEMS)
    with made_runs(new_folder("recipes"), [f"recipe={','.join(names)}", *(SHORT if quick else [])]) as members:
        yield share_finished(members)
        finished = by_recipe(members)
        for name, member in finished.items():
            yield from figures(SYSTEMS[name], read_summary(member), judged=not quick)
        if not quick and finished:
            draw({SYSTEMS[name]: curves(member) for name, member in finished.items()}, PICTURE)
            print(f"picture: {PICTURE.relative_to(ROOT)}")


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
    return {key: read_curve(member, key) for key in ("em", "searches", "dev/greedy/em", "dev/sampled/em")}


def draw(systems: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path) -> None:
    """Left: sampled EM in training, and dev EM; right: searches a question."""
    figure, (score, searches) = new_picture(1, ncols=2, figsize=(11, 4.5))
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
    save_picture(figure, (score, searches), path)


if __name__ == "__main__":
    main(measure)
