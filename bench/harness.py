"""How a measurement is written, shown and recorded.

A bench is a script ``bench/<room>/<name>.py`` that takes ``--quick`` (an answer within 60 s) and ends with a JSON line
for each figure: ``{"figure", "value", "unit", "reach", "holds"}``. Ratios and properties have a ``reach`` and hold or
fail; absolute speeds depend on the machine, have none, and are recorded only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figure:
    """One number and, where it is to hold anywhere, what it has to reach."""

    figure: str
    value: float
    unit: str
    reach: str | None = None
    holds: bool | None = None

    @classmethod
    def at_least(cls, figure: str, value: float, unit: str, reach: float) -> Figure:
        """Holds if ``value`` is ``reach`` or more."""
        return cls(figure, value, unit, f">= {reach:g}", value >= reach)

    @classmethod
    def at_most(cls, figure: str, value: float, unit: str, reach: float) -> Figure:
        """Holds if ``value`` is ``reach`` or less."""
        return cls(figure, value, unit, f"<= {reach:g}", value <= reach)

    def judged(self, judged: bool) -> Figure:
        """This figure, or without ``judged`` its value alone: where what was measured is too small to be held to it."""
        return self if judged else Figure(self.figure, self.value, self.unit)

    def to_json(self) -> str:
        """The line that ends a bench."""
        return json.dumps(asdict(self))


def parse_figures(output: str) -> list[Figure]:
    """The figures in a bench's output; other lines are for people."""
    figures = []
    for line in output.splitlines():
        if line.startswith('{"figure"'):
            figures.append(Figure(**json.loads(line)))
    return figures


def table(rows: Iterable[Figure]) -> str:
    """Figures as aligned text."""
    verdicts = {None: "recorded", True: "holds", False: "FAILS"}
    cells = [("figure", "value", "unit", "reach", "")]
    cells += [(row.figure, f"{row.value:,.4g}", row.unit, row.reach or "", verdicts[row.holds]) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def main(measure: Callable[[bool], Iterable[Figure]], arguments: Sequence[str] | None = None) -> None:
    """What a bench script calls: ``measure(quick)``, the table, the JSON lines; exit status 1 if a figure fails.

    Each figure is told when it is there, for people; as JSON only when all are, so that no half of a bench is recorded.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller measurement, within 60 s")
    figures = []
    for figure in measure(parser.parse_args(arguments).quick):
        print(f"{figure.figure}: {figure.value:,.4g} {figure.unit}".rstrip(), flush=True)
        figures.append(figure)
    print(table(figures))
    for figure in figures:
        print(figure.to_json())
    sys.exit(any(figure.holds is False for figure in figures))


def circumstances() -> dict[str, Any]:
    """What a recorded result must say besides its figures: commit, date, load, machine."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {
        "commit": commit + ("+changes" if dirty else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": round(os.getloadavg()[0], 2),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "processor": _processor(),
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
