"""What a run's processes take, minute by minute: memory, file handles, threads; and the picture of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.faults import runs
from search_agent.console.screen import new_picture, save_picture


def _own_memory(pid: int) -> float:
    """MB that are there because of this process; pages of libraries, shared with whatever else runs, are not."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return sum(kilobytes) / 1e3


def look(run_dir: Path, driver: int) -> dict[str, Any]:
    """The run's processes now, and what it has trained on."""
    trained = runs.rows(run_dir, "trained.jsonl")
    total: dict[str, float] = defaultdict(float)
    by_kind: dict[str, float] = defaultdict(float)
    for pid in [driver, *runs.run_processes(run_dir)]:
        try:
            process = psutil.Process(pid)
            memory = _own_memory(pid)
            found = {"memory_mb": memory, "handles": process.num_fds(), "threads": process.num_threads()}
            kind = "driver" if pid == driver else process.name().split(":")[-1].split(".")[0]
        except (psutil.Error, OSError):
            continue  # it ended while we looked
        by_kind[kind] += memory
        for name, value in found.items():
            total[name] += value
    return {
        "steps": len(trained),
        "episodes": sum(row["episodes"] for row in trained),
        "lost": sum(row["aborted"] for row in trained),
        "staleness": max((row["staleness"] for row in trained), default=0),
        **{name: round(value, 1) for name, value in total.items()},
        "by_kind_mb": {kind: round(value, 1) for kind, value in sorted(by_kind.items())},
    }


def draw(samples: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory by kind of process over the minutes, and everything that may not grow as a share of its last value."""
    minutes = [sample["minute"] for sample in samples]
    kinds = sorted(samples[-1]["by_kind_mb"], key=lambda kind: -samples[-1]["by_kind_mb"][kind])
    figure, (left, right) = new_picture(1, ncols=2, figsize=(10, 4))
    left.stackplot(minutes, [[s["by_kind_mb"].get(kind, 0.0) for s in samples] for kind in kinds], labels=kinds)
    left.set(xlabel="minutes", title="memory of the run's processes, MB")
    for what, label in (("memory_mb", "memory"), ("handles", "file handles"), ("threads", "threads")):
        right.plot(minutes, [sample[what] / samples[-1][what] for sample in samples], label=label)
    right.set(xlabel="minutes", title="share of the value at the end", ylim=(0.5, 1.2))
    save_picture(figure, (left, right), path)
