"""Our server and the published shape, one after the other in one run, over the same index and the same queries."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.harness import ROOT
from bench.retrieval import load, world
from search_agent.retrieval.building import build_index
from search_agent.retrieval.service import start_server

CONNECTIONS = 64


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
    corpus = world.corpus(num_passages)
    index = corpus.with_name(corpus.name + ".index")
    build_index(corpus, index)
    asked = world.queries(20_000)
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        start_server(corpus, log=log, index=index).stop()  # compiled code is on disk afterwards, as on a second start
        began = time.perf_counter()
        with start_server(corpus, log=log, index=index) as server:
            ready_s = time.perf_counter() - began
            ours = Measured(
                load.run(server.url, server.pid, asked, CONNECTIONS, seconds), _memory_mb(server.pid), ready_s
            )
        began = time.perf_counter()
        with _peer(corpus, Path(scratch) / "announce") as (url, pid):
            ready_s = time.perf_counter() - began
            theirs = Measured(load.run(url, pid, asked, CONNECTIONS, seconds), _memory_mb(pid), ready_s)
    if ours.load.failed or theirs.load.failed:
        raise SystemExit(f"failed requests: ours {ours.load.failed}, theirs {theirs.load.failed}")
    return ours, theirs


@contextmanager
def _peer(corpus: Path, announce: Path) -> Iterator[tuple[str, int]]:
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
