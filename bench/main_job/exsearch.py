"""ExSearch's twin, the control that ignores the weights, and GRPO on as many episodes, from one warm-up.

Each run is `bash cmd/train.sh recipe=exsearch_mini` (and ``_uniform``, ``_grpo``). The picture is
``docs/results/exsearch.png``. ``--quick`` makes one run too short to learn and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.runs import SHORT, by_recipe, made_runs, new_folder, read_curve, read_summary, share_finished
from search_agent.console.screen import new_picture, save_picture
from search_agent.grid.members import Member

RUNS = {
    "exsearch_mini": "softmax weights",
    "exsearch_mini_uniform": "weights ignored",
    "exsearch_mini_grpo": "GRPO",
}
PICTURE = ROOT / "docs" / "results" / "exsearch.png"
Curve = Sequence[tuple[int, float]]


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs, compare their summaries with each other, and draw their curves together."""
    names = ["exsearch_mini"] if quick else list(RUNS)
    with made_runs(new_folder("exsearch"), [f"recipe={','.join(names)}", *(SHORT if quick else [])]) as members:
        yield share_finished(members)
        finished = by_recipe(members)
        yield from figures({name: read_summary(member) for name, member in finished.items()}, judged=not quick)
        if not quick and finished:
            draw({RUNS[name]: curves(member) for name, member in finished.items()}, PICTURE)
            print(f"picture: {PICTURE.relative_to(ROOT)}")


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


def curves(member: Member) -> dict[str, Curve]:
    """(episodes played, value) of EM on dev, from the warm-up's end."""
    trainer = member.config.trainer
    size = trainer.prompts_per_step * trainer.samples_per_prompt
    return {
        how: [(step * size, value) for step, value in read_curve(member, f"dev/{how}/em")]
        for how in ("greedy", "sampled")
    }


def draw(runs: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """EM on dev over the episodes played, sampled and greedy."""
    figure, panels = new_picture(1, ncols=2, figsize=(11, 4.5), sharey=True)
    for axes, how in zip(panels, ("sampled", "greedy"), strict=True):
        for label, lines in runs.items():
            if lines[how]:
                axes.plot(*zip(*lines[how], strict=True), marker="o", label=label)
        axes.set_title(how)
        axes.set_xlabel("episodes played after the warm-up")
        axes.set_ylim(0, 1.02)
    panels[0].set_ylabel("exact match on dev")
    save_picture(figure, panels, path)


if __name__ == "__main__":
    main(measure)
