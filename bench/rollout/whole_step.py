"""A whole training step with staleness 2 against 0, searches taking 300 ms: the real ``train``, each side on a core.

Short runs of the quick start from one finished warm-up; its retrieval servers stand behind a proxy that gives each
query its seeded latency. Engine and learner have one thread each, pinned to a core of their own, in both arms.
``SLEUTH_BENCH_WARM`` names the Hugging Face folder of a warm-up to begin from; without it one is made (minutes).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.warm import warm_model
from bench.rollout import proxy

MEDIAN_S = 0.3
STEPS = 10
"""All of them are timed, from an empty buffer to an empty buffer: what is played ahead is paid for in the run."""
TEST_TASKS = 200
REACH = 1.4


@dataclass(frozen=True)
class Run:
    """What one run left."""

    step_s: float
    """Mean seconds of a step, over all steps."""
    em: float
    """Sampled exact match on the clean test after training."""
    interval: tuple[float, float]
    """95 % (Wilson)."""


def measure(quick: bool) -> Iterator[Figure]:
    """Three seeds of each arm, one run after the other; ``quick``: one seed, few steps, recorded only."""
    Path("runs").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="whole-step-", dir="runs"))
    warm = warm_model(folder / "warm", quick=quick)
    steps, seeds, tasks = (3, 1, 8) if quick else (STEPS, 3, TEST_TASKS)
    runs: dict[int, list[Run]] = {
        staleness: [play(folder / f"{staleness}-{seed}", warm, staleness, seed, steps, tasks) for seed in range(seeds)]
        for staleness in (0, 2)
    }
    yield from figures(runs[0], runs[2], judged=not quick)
    shutil.rmtree(folder)  # after a failure it stays, with its logs


def play(folder: Path, warm: str, staleness: int, seed: int, steps: int, tasks: int) -> Run:
    """One run, and what it left."""
    overrides = [
        f"model={warm}",
        "warmup.steps=0",
        f"seed={seed}",
        f"trainer.steps={steps}",
        f"trainer.max_staleness={staleness}",
        "trainer.drop_uniform_groups=false",
        "rollout.engine.threads=1",
        "cluster.learner_threads=1",
        # Each query has a latency of its own: a request of several would be as slow as its slowest.
        "client.max_queries_per_request=1",
        "client.max_requests_in_flight=128",
        "evaluation.dev_tasks=16",
        f"evaluation.test_tasks={tasks}",
        f"evaluation.every_steps={STEPS}",
    ]
    train(folder, MEDIAN_S, overrides)
    return read_run(
        json.loads((folder / "summary.json").read_text()),
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
    )


def read_run(summary: Any, metrics: Sequence[Any]) -> Run:
    """From a run's ``summary.json`` and the rows of its ``metrics.jsonl``."""
    seconds = [row["seconds/step"] for row in metrics if "seconds/step" in row]
    after = summary["after"]["sampled"]
    return Run(sum(seconds) / len(seconds), after["em"], (after["em_interval"][0], after["em_interval"][1]))


def figures(synchronous: Sequence[Run], ahead: Sequence[Run], *, judged: bool) -> Iterator[Figure]:
    """The ratio of mean steps, and for each seed whether the two arms' intervals of final EM meet."""
    ratio = _mean(run.step_s for run in synchronous) / _mean(run.step_s for run in ahead)
    name = "whole step, staleness 0 / 2, 300 ms"
    yield Figure.at_least(name, ratio, "x", REACH).judged(judged)
    yield Figure("step, staleness 0", _mean(run.step_s for run in synchronous), "s")
    yield Figure("step, staleness 2", _mean(run.step_s for run in ahead), "s")
    for seed, (one, other) in enumerate(zip(synchronous, ahead, strict=True)):
        yield Figure(f"final sampled EM, staleness 0, seed {seed}", one.em, "share")
        name = f"final sampled EM, staleness 2, seed {seed}"
        yield Figure.at_least(name, other.em, "share", one.interval[0]).judged(judged)


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


# -- a run behind slow servers --


def train(folder: Path, median_s: float, overrides: Sequence[str]) -> None:
    """``train`` in a process of its own."""
    code = "import sys; from bench.rollout.whole_step import child; sys.exit(child(float(sys.argv[1]), sys.argv[2:]))"
    command = [sys.executable, "-c", code, str(median_s), f"run_dir={folder}", *overrides]
    status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    if status:
        raise SystemExit(f"a run ended with status {status}; see {folder}/logs")


def child(median_s: float, arguments: Sequence[str]) -> int:
    """The process of a run: the same command as ``cmd/train.sh``, with slow servers and pinned actors."""
    from search_agent import retrievers, train
    from search_agent.retrieval.server.child import RunningServer, start_server

    def start_slowly(*args: Any, **options: Any) -> RunningServer:
        server = start_server(*args, **options)
        server.url, process = proxy.start(server.url, median_s)
        _proxies.append(process)
        return server

    if median_s:
        retrievers.start_server = start_slowly  # type: ignore[attr-defined]
        threading.Thread(target=_pin_children, daemon=True).start()
    try:
        return train.main(list(arguments))
    finally:
        for process in _proxies:
            process.kill()


_proxies: list[subprocess.Popen[str]] = []
_CORES = {"Learner": 0, "Rollout": 1}


def _pin_children() -> None:
    """Keep each actor's threads on its core, new ones too; actors are known by the titles that Ray gives them."""
    pause = threading.Event()
    while not pause.wait(1.0):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes().decode(errors="replace")
                core = next((core for kind, core in _CORES.items() if title.startswith(f"ray::{kind}")), None)
                if core is not None and _descends(int(process.name), os.getpid()):
                    for thread in (process / "task").iterdir():
                        os.sched_setaffinity(int(thread.name), {core % (os.cpu_count() or 1)})
            except (OSError, ValueError):  # it has ended
                continue


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


if __name__ == "__main__":
    main(measure)
