"""How long a fresh process takes until its engine stands, and the first batch after that."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.engine.model import write
from bench.harness import ROOT, Figure, main

CHILD = """
import asyncio, sys
from verl.rollout.engine import EngineConfig, GenerateRequest, VllmEngine
from verl.rollout.interfaces import Sampling, Turn
engine = VllmEngine(sys.argv[1], EngineConfig(max_context_tokens=512), seed=0)
print("ready", flush=True)
async def first():
    turn = Turn(64, ("</search>", "</answer>"))
    await asyncio.gather(*engine.generate_many([GenerateRequest([5, i], turn, Sampling(), i) for i in range(64)]))
asyncio.run(first())
print("generated", flush=True)
asyncio.run(engine.close())
"""


def measure(quick: bool) -> Iterator[Figure]:
    """Medians over fresh processes; imports are warm in the page cache after the first."""
    with tempfile.TemporaryDirectory() as folder:
        model = write(Path(folder))
        runs = [start(model) for _ in range(1 if quick else 5)]
    starts, firsts = zip(*runs, strict=True)
    yield Figure.at_most("engine start, fresh process, median", statistics.median(starts), "s", 10)
    yield Figure.at_most("first batch of 64 requests, median", statistics.median(firsts), "s", 2)


def start(model: Path) -> tuple[float, float]:
    """Seconds from the process's start to a standing engine, and from there to the first batch's end."""
    began = time.perf_counter()
    command = [sys.executable, "-c", CHILD, str(model)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        times = {line.strip(): time.perf_counter() for line in process.stdout}
    if process.returncode != 0:
        raise SystemExit(f"the engine's process ended with status {process.returncode}")
    return times["ready"] - began, times["generated"] - times["ready"]


if __name__ == "__main__":
    main(measure)
