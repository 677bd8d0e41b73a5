"""``bash cmd/train.sh -m reward=em,f1 seed=1,2,3``: every combination as a run of its own, then one table.

The grid's folder is a function of its command, and each run's of its swept keys: the same command goes on where a grid
was broken off, and finished runs are not made again. A run that fails is reported and does not stop the others; a grid
that is killed takes its runs with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from search_agent.config import RunConfig
from search_agent.grid.members import Member, plan_grid
from search_agent.grid.report import report_grid
from search_agent.planning.plan import gpus_needed
from search_agent.planning.preflight import config_faults, machine_faults
from verl.cluster.processes import parent_variable
from verl.config.compose import quoted

_INTERRUPTED = 130


Train = Callable[[Member], int]
"""Runs one member to its end; returns the exit status."""


def run_grid(
    arguments: Sequence[str],
    train: Train | None = None,
    capacity: Callable[[RunConfig], int] | None = None,
) -> int:
    """Run what is not finished, as many at a time as ``capacity`` says, and print the table; 0 if all have results.

    With ``dry_run=true`` each run's name, folder and what forbids it; with ``fresh=true`` finished runs are made again.
    """
    folder, members = plan_grid(arguments)
    if members[0].config.dry_run:
        return print_runs(members)
    folder.mkdir(parents=True, exist_ok=True)
    runs = {member.folder.name: list(member.swept) for member in members}
    (folder / "grid.json").write_text(json.dumps({"command": list(arguments), "runs": runs}, indent=1) + "\n")
    waiting = []
    for number, member in enumerate(members, 1):
        title = f"[{number}/{len(members)}] {' '.join(member.swept)}"
        if member.finished and not member.config.fresh:
            member.check_same()
            print(f"{title}: finished before", flush=True)
        else:
            waiting.append((title, member))
    if waiting:
        at_once = (capacity or _capacity)(waiting[0][1].config)
        _run_all(waiting, train or (_train if at_once == 1 else _train_apart), at_once)
    report_grid(folder, members)
    return 0 if all(member.finished for member in members) else 1


def print_runs(members: Sequence[Member]) -> int:
    """Every run, its folder and what this machine lacks for it; 1 if one of them cannot work, with the reasons."""
    fit = True
    for number, member in enumerate(members, 1):
        print(f"[{number}/{len(members)}] {' '.join(member.swept)}: {member.folder}")
        for fault in config_faults(member.config):
            fit = False
            print(f"  {fault}")
        for lack in machine_faults(member.config, member.folder):
            print(f"  this machine: {lack}")
    return 0 if fit else 1


def _run_all(waiting: Sequence[tuple[str, Member]], train: Train, at_once: int) -> None:
    """Returns when every run has ended, however it ended. Raises KeyboardInterrupt if one was interrupted."""
    stopped = Event()

    def run(title: str, member: Member) -> int:
        if stopped.is_set():
            return _INTERRUPTED
        print(f"{title}: {member.folder}", flush=True)
        status = train(member)
        if status == _INTERRUPTED:
            stopped.set()
        elif not member.finished:
            print(f"{title}: FAILED with status {status}; its logs are in {member.folder / 'logs'}", flush=True)
        return status

    with ThreadPoolExecutor(at_once) as pool:
        runs = [pool.submit(run, title, member) for title, member in waiting]
        try:
            if any(done.result() == _INTERRUPTED for done in as_completed(runs)):
                raise KeyboardInterrupt
        finally:
            stopped.set()


def _capacity(config: RunConfig) -> int:
    """One run at a time on this machine; on a Ray cluster as many as its GPUs hold (not run: needs such a cluster)."""
    address, needed = config.cluster.address, gpus_needed(config)
    if address == "local" or not needed:
        return 1
    from verl.cluster.capacity import cluster_gpus

    return max(1, int(cluster_gpus(address) / needed))


def _train(member: Member, **streams: Any) -> int:
    command = [sys.executable, "-m", "search_agent.train", *member.overrides, f"run_dir={quoted(str(member.folder))}"]
    # A run of a grid ends with the grid: nobody else would look at it, and the same command could not go on.
    return subprocess.run(command, check=False, env={**os.environ, **parent_variable()}, **streams).returncode


def _train_apart(member: Member) -> int:
    """Runs side by side would mix on the screen: each prints to a file beside its folder."""
    output = member.folder.with_name(f"{member.folder.name}.out")
    print(f"{' '.join(member.swept)}: output in {output}", flush=True)
    with output.open("ab") as stream:
        return _train(member, stdout=stream, stderr=subprocess.STDOUT)
