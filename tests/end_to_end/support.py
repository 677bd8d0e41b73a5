"""Runs the real commands as a user would, small, and looks at what they leave behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.faults import runs
from bench.faults.runs import logs, shared_memory, stop, wait_for_step
from bench.faults.runs import rows as metrics
from bench.harness import ROOT

__all__ = ["ROOT", "SMALL", "logs", "metrics", "run", "run_processes", "shared_memory", "start", "stop"]
__all__ += ["wait_for_step", "wait_until_clean"]

# The quick start's own recipe, shortened: the same processes, stages and files.
SMALL = (
    "warmup.steps=30",
    "trainer.steps=4",
    "trainer.prompts_per_step=4",
    "trainer.samples_per_prompt=4",
    "trainer.save_every_steps=1",
    "trainer.drop_uniform_groups=false",
    "evaluation.every_steps=2",
    "evaluation.dev_tasks=6",
    "evaluation.test_tasks=10",
    "environment.max_tokens_per_turn=32",
    "deterministic=true",
)


def start(run_dir: Path, *overrides: str, module: str = "search_agent.train") -> subprocess.Popen[str]:
    """Start a command in the background."""
    return runs.launch(run_dir, [*SMALL, *overrides], module=module)


def run(run_dir: Path, *overrides: str, expect: int = 0) -> str:
    """Run a training command to its end and return what it printed."""
    process = start(run_dir, *overrides)
    status = process.wait(timeout=400)
    text = runs.output(run_dir)
    assert status == expect, f"exit status {status}:\n{text[-3000:]}\n{logs(run_dir)}"
    return text


def run_processes(run_dir: Path) -> list[int]:
    """Living processes that carry the run's token, its guardian not included."""
    return sorted(runs.run_processes(run_dir))


def wait_until_clean(run_dir: Path, before: set[str], timeout_s: float = 10) -> None:
    """Fail unless every process of the run and all its shared memory are gone in time."""
    processes, memory = runs.left_behind(run_dir, before, timeout_s)
    assert not processes, f"left after {timeout_s} s"
    assert not memory, f"left after {timeout_s} s"
