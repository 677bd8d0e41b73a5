"""Every algorithm preset of the quick start: what it reaches, how soon, and one picture.

All start from one warm-up, which is the same in each preset, and which ``SLEUTH_BENCH_WARM=FOLDER`` brings along.

A preset holds if the best checkpoint's greedy exact match on the clean test is 0.90 or more and reinforcement took six
minutes or less. The picture (``docs/results/algorithms.png``) has the training reward over steps. ``--quick`` makes
one run too short to learn, of PPO, and draws into its folder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.quickstart import SHORT, read_summary
from bench.main_job.warm import warm_model
from search_agent.grid.members import Member, plan_grid
from search_agent.grid.report import draw_curves
from search_agent.grid.run import run_grid

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
    """Make the runs in a folder of their own, draw them together, and judge each."""
    Path("runs").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="algorithms-", dir="runs"))
    presets = PRESETS[1:2] if quick else PRESETS
    short = [override for override in SHORT if not override.startswith(("trainer.drop", "warmup."))]
    model = warm_model(folder / "warmup", quick=quick)
    warm = [f"model={model}", "warmup.steps=0", "warmup.all_weights=false"]
    arguments = [f"recipe={','.join(presets)}", *(short if quick else []), *warm, f"run_dir={folder}"]
    _, members = plan_grid(arguments)
    run_grid(arguments)
    finished = [member for member in members if member.finished]
    yield Figure.at_least("presets that finished", len(finished) / len(members), "share", 1.0)
    for member in finished:
        yield from figures(member, judged=not quick)
    if finished:
        draw_curves({member.config.name: [member] for member in finished}, folder / "curves.png" if quick else PICTURE)
    if len(finished) == len(members) and not quick:
        shutil.rmtree(folder)  # after a failure it stays, with its logs


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
    rows = [json.loads(line) for line in (member.folder / "metrics.jsonl").read_text().splitlines()]
    if (first := first_good(rows)) is not None:
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
