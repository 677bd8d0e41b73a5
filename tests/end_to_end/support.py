"""Runs the real commands as a user would, small, and looks at what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

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


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(run_dir: Path, *overrides: str, module: str = "search_agent.train") -> subprocess.Popen[str]:
    """Start a command in the background."""
    log = open(f"{run_dir}.out", "a")  # noqa: SIM115 (the child writes to it until it ends)
    return subprocess.Popen(
        [sys.executable, "-m", module, *SMALL, f"run_dir={run_dir}", *overrides],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        # A test runner in the background may ignore Ctrl-C, and a child would inherit that.
        preexec_fn=_heed_interrupts,
    )


def run(run_dir: Path, *overrides: str, expect: int = 0) -> str:
    """Run a training command to its end and return what it printed."""
    process = start(run_dir, *overrides)
    status = process.wait(timeout=400)
    text = Path(f"{run_dir}.out").read_text()
    assert status == expect, f"exit status {status}:\n{text[-3000:]}\n{logs(run_dir)}"
    return text


def logs(run_dir: Path) -> str:
    """The last lines of every log of a run, for a failing test's message."""
    files = sorted((run_dir / "logs").glob("*.log"))
    return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` that are whole."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int, timeout_s: float = 300) -> None:
    """Return once the run has logged a step (warm-up steps count too)."""
    deadline = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in metrics(run_dir)):
        assert process.poll() is None, Path(f"{run_dir}.out").read_text()[-3000:] + logs(run_dir)
        assert time.monotonic() < deadline, f"step {step} was not reached in {timeout_s} s"
        time.sleep(0.05)


def stop(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """Send a signal to the driver alone and wait for its end."""
    process.send_signal(how)
    process.wait(timeout=60)


def run_processes(run_dir: Path) -> list[int]:
    """Living processes that carry the run's token, its guardian not included."""
    record = json.loads((run_dir / "driver.json").read_text())
    marker = f"SLEUTH_RUN_TOKEN={record['token']}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked
            if marker in environment and not zombie:
                found.append(int(entry.name))
    return found


def shared_memory(run_dir: Path | None = None) -> set[str]:
    """What stands in /dev/shm, but for the folders of other runs."""
    mine = f"sleuth-{json.loads((run_dir / 'driver.json').read_text())['token']}" if run_dir else None
    names = {entry.name for entry in Path("/dev/shm").iterdir()}
    return {name for name in names if not name.startswith("sleuth-") or name == mine}


def wait_until_clean(run_dir: Path, before: set[str], timeout_s: float = 10) -> None:
    """Fail unless every process of the run and all its shared memory are gone in time."""
    deadline = time.monotonic() + timeout_s
    while (left := run_processes(run_dir)) or shared_memory(run_dir) - before:
        assert time.monotonic() < deadline, f"left after {timeout_s} s: {left}, {shared_memory(run_dir) - before}"
        time.sleep(0.1)
