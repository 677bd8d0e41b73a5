"""Memory and speed of building an index: twice the passages must not need much more memory.

Memory is what belongs to the process alone (anonymous pages); mapped files are pages that the system may drop.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.harness import ROOT, Figure, main
from bench.retrieval import world

WIKIPEDIA_PASSAGES = 21_015_324
POLL_S = 0.05


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` builds 20,000 and 40,000 passages instead of 1,000,000 and 2,000,000."""
    small, large = (20_000, 40_000) if quick else (1_000_000, 2_000_000)
    (small_mb, small_s), (large_mb, large_s) = (_build(number) for number in (small, large))
    name, ratio = f"peak memory, {large:,} / {small:,} passages", large_mb / small_mb
    yield Figure.at_most(name, ratio, "x", 1.2).judged(not quick)
    yield Figure("peak memory, the larger", large_mb, "MB")
    if not quick:  # below some hundred thousand passages the vocabulary still grows: no line to go on
        slope = (large_mb - small_mb) / (large - small)
        at_wikipedia = small_mb + slope * (WIKIPEDIA_PASSAGES - small)
        yield Figure("peak memory at Wikipedia's size, by a line through both", at_wikipedia, "MB")
    yield Figure("passages per second, the larger", large / large_s, "1/s")
    yield Figure("passages per second, the smaller", small / small_s, "1/s")


def _build(num_passages: int) -> tuple[float, float]:
    """(peak MB, seconds) of a build from nothing."""
    folder = world.FOLDER / f"build_{num_passages}"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "search_agent.retrieval.index", f"corpus={world.corpus(num_passages)}"]
    began, peak_kb = time.perf_counter(), 0
    with subprocess.Popen([*command, f"index={folder}"], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak_kb = max(peak_kb, _anonymous_kb(process.pid))
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"the build ended with {process.returncode}")
    shutil.rmtree(folder)
    return peak_kb / 1e3, time.perf_counter() - began


def _anonymous_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main(figures)
