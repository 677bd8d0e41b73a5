"""The runs that a bench of whole runs makes, and what it reads of them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness import Figure
from search_agent.grid.members import RUNS, Member, plan_grid
from search_agent.grid.run import run_grid
from verl.tracking.jsonl import read_metrics

SHORT = [
    "warmup.steps=20",
    "trainer.steps=2",
    "trainer.drop_uniform_groups=false",
    "evaluation.dev_tasks=16",
    "evaluation.test_tasks=16",
]
"""What makes a run of ``--quick``: too short to learn."""


def new_folder(bench: str) -> Path:
    """A folder of its own for the runs of a bench."""
    RUNS.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{bench}-", dir=RUNS))


@contextmanager
def made_runs(folder: Path, arguments: Sequence[str]) -> Iterator[list[Member]]:
    """Make the runs of a grid in ``folder``; it stays, with its logs, if one of them has no result."""
    arguments = [*arguments, f"run_dir={folder}"]
    _, members = plan_grid(arguments)
    run_grid(arguments)
    yield members
    if all(member.finished for member in members):
        shutil.rmtree(folder)


def share_finished(members: Sequence[Member]) -> Figure:
    """How many runs have a result; holds if all have."""
    return Figure.at_least("runs that finished", sum(m.finished for m in members) / len(members), "share", 1.0)


def by_recipe(members: Sequence[Member]) -> dict[str, Member]:
    """The finished runs of a grid over recipes, by the name of each."""
    return {member.config.name: member for member in members if member.finished}


def read_summary(member: Member) -> Any:
    """What a finished run found."""
    return json.loads((member.folder / "summary.json").read_text())


def read_curve(member: Member, metric: str) -> list[tuple[int, float]]:
    """(reinforcement step, value) wherever the metric was written."""
    begin = member.config.warmup.steps
    records = read_metrics(member.folder / "metrics.jsonl")
    return [(record["step"] - begin, record[metric]) for record in records if metric in record]
