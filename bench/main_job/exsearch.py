"""ExSearch's twin, the control that ignores the weights, and GRPO on as many episodes, from one warm-up.

The warm-up is `bash cmd/train.sh recipe=exsearch_mini trainer.steps=0`, and each run is `recipe=exsearch_mini` (and
``_uniform``, ``_grpo``) from its weights, with ``warmup.steps=0``. The picture is ``docs/results/exsearch.png``.
``--quick`` makes one run too short to learn and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.runs import SHORT, by_recipe, made_runs, new_folder, read_curve, read_summary, share_finished
from bench.main_job.warm import warm_model
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
    names, folder = ["exsearch_mini"] if quick else list(RUNS), new_folder("exsearch")
    keys = [f"recipe={','.join(names)}", *(SHORT if quick else [])]
    keys += [f"model={warm_model(folder / 'warm', quick=quick, recipe=names[0])}", "warmup.steps=0"]
    with made_runs(folder, keys) as members:
        yield share_finished(members)
        finished = by_recipe(members)
        yield from figures({name: read_summary(member) for name, member in finished.items()}, judged=not quick)
        lines = {RUNS[name]: curves(member) for name, member in finished.items()}
        for label, line in lines.items():
            for how, points in line.items():
                for episodes, value in points:
                    yield Figure(f"{label}: {how} EM on dev after {episodes} episodes", value, "share")
        if not quick and finished:
            draw(lines, PICTURE)
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
