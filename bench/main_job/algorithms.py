"""Every algorithm preset of the quick start: what it reaches, how soon, and one picture.

All start from one warm-up, which is the same in each preset, and which ``SLEUTH_BENCH_WARM=FOLDER`` brings along.

A preset holds if the best checkpoint's greedy exact match on the clean test is 0.90 or more and reinforcement took six
minutes or less. The picture (``docs/results/algorithms.png``) has the training reward over steps. ``--quick`` makes
one run too short to learn, of PPO, and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.runs import SHORT, by_recipe, made_runs, new_folder, read_summary, share_finished
from bench.main_job.warm import warm_model
from search_agent.grid.members import Member
from search_agent.grid.report import draw_curves
from verl.tracking.jsonl import read_metrics

PRESETS = (
    "quickstart",
    "quickstart_ppo",
    "quickstart_rloo",
    "quickstart_dapo",
    "quickstart_gspo",
    "quickstart_gdpo",
    "quickstart_lora",
)
GOOD = 0.90
PICTURE = ROOT / "docs" / "results" / "algorithms.png"


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs, draw them together, and judge each."""
    folder = new_folder("algorithms")
    presets = PRESETS[1:2] if quick else PRESETS
    short = [override for override in SHORT if not override.startswith(("trainer.drop", "warmup."))]
    model = warm_model(folder / "warmup", quick=quick)
    warm = [f"model={model}", "warmup.steps=0", "warmup.all_weights=false"]
    with made_runs(folder, [f"recipe={','.join(presets)}", *(short if quick else []), *warm]) as members:
        yield share_finished(members)
        finished = by_recipe(members)
        for member in finished.values():
            yield from figures(member, judged=not quick)
        if finished and not quick:
            draw_curves({name: [member] for name, member in finished.items()}, PICTURE)


def figures(member: Member, *, judged: bool) -> Iterator[Figure]:
    """What one preset reached; without ``judged``, recorded only."""
    name, summary = member.config.name, read_summary(member)
    score, seconds = summary["after"]["greedy"]["em"], summary["seconds"]["reinforcement"]
    if judged:
        yield Figure.at_least(f"{name}: greedy EM, clean test", score, "share", GOOD)
        yield Figure.at_most(f"{name}: reinforcement", seconds, "s", 360)
    else:
        yield Figure(f"{name}: greedy EM, clean test", score, "share")
        yield Figure(f"{name}: reinforcement", seconds, "s")
    yield Figure(f"{name}: sampled EM, clean test", summary["after"]["sampled"]["em"], "share")
    if (first := first_good(read_metrics(member.folder / "metrics.jsonl"))) is not None:
        yield Figure(f"{name}: reinforcement until dev greedy EM {GOOD:g}", first, "s")


def first_good(rows: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of reinforcement steps before the first evaluation on dev whose greedy EM was good; None if none was."""
    seconds = 0.0
    for row in rows:
        seconds += row.get("seconds/step", 0.0)
        if row.get("dev/greedy/em", 0.0) >= GOOD:
            return seconds
    return None


if __name__ == "__main__":
    main(measure)
