"""Our server and the published shape, in turns in one run, over the same index and the same queries."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

from bench.harness import ROOT, Figure
from bench.retrieval import load, world
from search_agent.retrieval.server.child import start_server

CONNECTIONS = 64
TURNS = ((0, 1), (1, 0), (0, 1), (1, 0))
"""Who is asked first and second: what drifts on the machine meets both."""


@dataclass(frozen=True)
class Measured:
    """One server under load."""

    load: load.Load
    memory_mb: float
    """Resident memory after the load, shared and mapped pages included."""
    ready_s: float
    """From the start of the process to its first answer, the index being built already."""


def measure(num_passages: int, seconds: float) -> tuple[Measured, Measured]:
    """(ours, the published shape)"""
    corpus, index = world.indexed(num_passages)
    asked = world.queries(20_000)
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        start_server(corpus, log=log, index=index).stop()  # compiled code is on disk afterwards, as on a second start
        began = time.perf_counter()
        with start_server(corpus, log=log, index=index) as server:
            started = time.perf_counter()
            with peer(corpus, Path(scratch) / "announce") as other:
                ready_s = (started - began, time.perf_counter() - started)
                sides = ((server.url, server.pid), other)
                loads = _in_turns(sides, asked, seconds)
                memory_mb = [_memory_mb(pid) for _, pid in sides]
    if any(one.failed for one in loads):
        raise SystemExit(f"failed requests: ours {loads[0].failed}, theirs {loads[1].failed}")
    ours, theirs = (Measured(*parts) for parts in zip(loads, memory_mb, ready_s, strict=True))
    return ours, theirs


def compared(ours: Measured, theirs: Measured, reach: float) -> Iterator[Figure]:
    """Rates and latencies, side by side; ``reach`` is how many times as many queries ours has to answer."""
    rate_ours, rate_theirs = ours.load.per_second, theirs.load.per_second
    yield Figure.at_least("queries per second, ours / theirs", rate_ours / rate_theirs, "x", reach)
    per_cpu = ours.load.per_cpu_second / theirs.load.per_cpu_second
    yield Figure("queries per CPU second of the server, ours / theirs", per_cpu, "x")
    yield Figure("queries per second, ours", rate_ours, "1/s")
    yield Figure("queries per second, theirs", rate_theirs, "1/s")
    yield Figure("p99 latency, ours", ours.load.quantile_s(0.99) * 1e3, "ms")
    yield Figure("p99 latency, theirs", theirs.load.quantile_s(0.99) * 1e3, "ms")


def _in_turns(sides: Sequence[tuple[str, int]], asked: Sequence[str], seconds: float) -> list[load.Load]:
    """The load of each server (URL, process): so many seconds in all."""
    turns: list[list[load.Load]] = [[] for _ in sides]
    for side in chain(*TURNS):
        turns[side].append(load.run(*sides[side], asked, CONNECTIONS, seconds / len(TURNS)))
    return [load.together(own) for own in turns]


@contextmanager
def peer(corpus: Path, announce: Path) -> Iterator[tuple[str, int]]:
    """The published shape over the corpus, as (URL, process)."""
    command = [sys.executable, "-m", "bench.retrieval.peer", str(corpus), str(announce)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            while not announce.exists():
                if process.poll() is not None:
                    raise SystemExit("the published shape did not start")
                time.sleep(0.05)
            yield announce.read_text(), process.pid
        finally:
            process.terminate()
            process.wait(30)


def _memory_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6
