"""Starting, killing and looking at real runs from outside, as a user, a batch system or an outage would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from verl.cluster.processes import parent_variable

TIMING = ("time", "seconds/", "tokens_per_s", "warmup/tokens_per_s", "busy/", "idle/", "search/")
"""What timing decides, and nothing else, may differ between two deterministic runs of one configuration."""

_SHARED_MEMORY = Path("/dev/shm")


def launch(
    run_dir: Path, arguments: Iterable[str], *, module: str = "search_agent.train", **variables: str
) -> subprocess.Popen[str]:
    """Start a command in the background; what it prints is appended to ``<run_dir>.out``. It ends with this process."""
    with open(f"{run_dir}.out", "a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments, f"run_dir={run_dir}"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NO_COLOR": "1", **parent_variable(), **variables},
            # What starts it in the background may ignore Ctrl-C, and a child would inherit that.
            preexec_fn=_heed_interrupts,
        )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def output(run_dir: Path) -> str:
    """What every start of the run has printed."""
    return Path(f"{run_dir}.out").read_text(errors="replace")


def logs(run_dir: Path) -> str:
    """The last lines of every log of a run, for a message."""
    files = sorted((run_dir / "logs").glob("*.log"))
    return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a file of the run that are whole."""
    path = run_dir / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def without_timing(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as two deterministic runs must share them."""
    return [{key: value for key, value in row.items() if not key.startswith(TIMING)} for row in metrics]


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int, timeout_s: float = 300) -> None:
    """Return once the run has logged a step (warm-up steps count too); an AssertionError if it ends before."""
    deadline = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in rows(run_dir)):
        assert process.poll() is None, output(run_dir)[-3000:] + logs(run_dir)
        assert time.monotonic() < deadline, f"step {step} was not reached in {timeout_s} s"
        time.sleep(0.05)


def stop(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """Send a signal to the driver alone and wait for its end."""
    process.send_signal(how)
    process.wait(timeout=60)


def token(run_dir: Path) -> str | None:
    """What the processes of the run's newest driver carry; None before there was one."""
    path = run_dir / "driver.json"
    return str(json.loads(path.read_text())["token"]) if path.exists() else None


def run_processes(run_dir: Path) -> dict[int, str]:
    """Living processes that carry the run's token, the guardian and the driver not included, with their command."""
    marker = f"SLEUTH_RUN_TOKEN={token(run_dir)}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked
            if marker in environment and not zombie:
                found[int(entry.name)] = command
    return found


def shared_memory(run_dir: Path | None = None) -> set[str]:
    """What stands in /dev/shm, but for the folders of other runs."""
    mine = f"sleuth-{token(run_dir)}" if run_dir is not None else None
    names = {entry.name for entry in _SHARED_MEMORY.iterdir()}
    return {name for name in names if not name.startswith("sleuth-") or name == mine}


def unused_memory(names: Iterable[str]) -> set[str]:
    """Those files of /dev/shm that no living process maps or holds open."""
    left = set(names)
    for entry in Path("/proc").iterdir():
        if left and entry.name.isdigit():
            try:
                used = (entry / "maps").read_text(errors="replace")
                used += "\n".join(os.readlink(link) for link in (entry / "fd").iterdir())
            except OSError:
                continue  # it ended while we looked
            left = {name for name in left if f"{_SHARED_MEMORY}/{name}" not in used}
    return left


def left_behind(run_dir: Path, before: set[str], timeout_s: float = 10) -> tuple[dict[int, str], set[str]]:
    """Processes and shared memory of an ended run that are there after ``timeout_s``; returns as soon as none is."""
    deadline = time.monotonic() + timeout_s
    while True:
        processes, new = run_processes(run_dir), shared_memory(run_dir) - before
        if not (processes or new) or time.monotonic() > deadline:
            return processes, unused_memory(new)  # other programs of this machine use shared memory too
        time.sleep(0.1)
