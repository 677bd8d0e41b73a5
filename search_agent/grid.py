"""``bash cmd/train.sh -m reward=em,f1 seed=1,2,3``: every combination as a run of its own, then one table.

The grid's folder is a function of its command, and each run's of its swept keys: the same command goes on where a grid
was broken off, and finished runs are not made again. A run that fails is reported and does not stop the others; a grid
that is killed takes its runs with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from search_agent.command import NOT_RESULTS, load_config, results_config
from search_agent.config import RunConfig
from search_agent.plan import gpus_needed
from search_agent.preflight import find_faults
from verl.cluster.processes import parent_variable
from verl.config.compose import expand_grid, to_yaml
from verl.errors import UserError

RUNS = Path("runs")
_INTERRUPTED = 130


@dataclass(frozen=True)
class Member:
    """One run of a grid."""

    overrides: tuple[str, ...]
    """What the run is trained with, ``run_dir`` apart."""
    swept: tuple[str, ...]
    """The overrides that differ between members."""
    folder: Path
    config: RunConfig

    @property
    def setting(self) -> str:
        """The swept overrides but for the seed: members of one setting are repetitions of each other."""
        return " ".join(override for override in self.swept if not override.startswith("seed=")) or "(all)"

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        return (self.folder / "summary.json").exists()


Train = Callable[[Member], int]
"""Runs one member to its end; returns the exit status."""


def plan_grid(arguments: Sequence[str], runs: Path = RUNS) -> tuple[Path, list[Member]]:
    """The grid's folder and its runs in order. Raises UserError with every fault of every combination."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("run_dir=")]
    kept = [argument for argument in arguments if not argument.startswith("run_dir=")]
    telling = [argument for argument in kept if re.split(r"[.=]", argument)[0] not in NOT_RESULTS]
    digest = hashlib.sha256("\n".join(telling).encode()).hexdigest()[:12]
    folder = Path(named[-1]) if named else runs / f"grid-{digest}"
    combinations = expand_grid(kept)
    fixed = set(kept)
    members, faults = [], []
    for overrides in combinations:
        swept = tuple(override for override in overrides if override not in fixed)
        try:
            config = load_config(overrides)
        except UserError as error:
            faults += [line for line in str(error).splitlines() if line not in faults]
        else:
            members.append(Member(tuple(overrides), swept, folder / _folder_name(swept), config))
    repeated = [swept for swept, count in Counter(member.swept for member in members).items() if count > 1]
    faults += [f"{' '.join(swept)}: stands in the grid more than once; write each value once" for swept in repeated]
    if faults:
        raise UserError("\n".join(faults))
    return folder, members


def run_grid(
    arguments: Sequence[str],
    train: Train | None = None,
    capacity: Callable[[RunConfig], int] | None = None,
) -> int:
    """Run what is not finished, as many at a time as ``capacity`` says, and print the table; 0 if all have results.

    With ``dry_run=true`` each run's name, folder and what forbids it; with ``fresh=true`` finished runs are made again.
    """
    from search_agent.grid_report import report_grid

    folder, members = plan_grid(arguments)
    if members[0].config.dry_run:
        return print_runs(members)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.json").write_text(json.dumps(_record(arguments, members), indent=1) + "\n")
    waiting = []
    for number, member in enumerate(members, 1):
        title = f"[{number}/{len(members)}] {' '.join(member.swept)}"
        if member.finished and not member.config.fresh:
            _check_same(member)
            print(f"{title}: finished before", flush=True)
        else:
            waiting.append((title, member))
    if waiting:
        at_once = (capacity or _capacity)(waiting[0][1].config)
        _run_all(waiting, train or (_train if at_once == 1 else _train_apart), at_once)
    report_grid(folder, members)
    return 0 if all(member.finished for member in members) else 1


def print_runs(members: Sequence[Member]) -> int:
    """Every run and its folder; 1 if one of them cannot fit, with the reasons."""
    fit = True
    for number, member in enumerate(members, 1):
        print(f"[{number}/{len(members)}] {' '.join(member.swept)}: {member.folder}")
        for fault in find_faults(member.config, member.folder):
            fit = False
            print(f"  {fault}")
    return 0 if fit else 1


def _check_same(member: Member) -> None:
    """Raises UserError if a finished run's results are of another configuration: a preset was changed since."""
    recorded = member.folder / "config.yaml"
    if recorded.exists() and recorded.read_text() != to_yaml(results_config(member.config)):
        raise UserError(
            f"{member.folder} is finished, but under another configuration (see its config.yaml; was a preset changed "
            "since?): write fresh=true to make the grid anew, or run_dir= for another one"
        )


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


def _train(member: Member) -> int:
    return subprocess.run(_command(member), check=False, env=_environment()).returncode


def _train_apart(member: Member) -> int:
    """Runs side by side would mix on the screen: each prints to a file beside its folder."""
    output = member.folder.with_name(f"{member.folder.name}.out")
    print(f"{' '.join(member.swept)}: output in {output}", flush=True)
    with output.open("ab") as stream:
        return subprocess.run(
            _command(member), check=False, env=_environment(), stdout=stream, stderr=subprocess.STDOUT
        ).returncode


def _environment() -> dict[str, str]:
    """A run of a grid ends with the grid: nobody else would look at it, and the same command could not go on."""
    return {**os.environ, **parent_variable()}


def _command(member: Member) -> list[str]:
    return [sys.executable, "-m", "search_agent.train", *member.overrides, f"run_dir='{member.folder}'"]


def _record(arguments: Sequence[str], members: Sequence[Member]) -> dict[str, Any]:
    """What ``grid.json`` says: the command, and which folder holds which setting."""
    runs = {member.folder.name: list(member.swept) for member in members}
    return {"command": list(arguments), "runs": runs}


def _folder_name(swept: Sequence[str]) -> str:
    """Readable, safe as a file name, and different for different settings."""
    if not swept:
        return "run"
    text = re.sub(r"[^\w=.,-]+", "_", ",".join(swept))
    digest = hashlib.sha256("\n".join(swept).encode()).hexdigest()[:6]
    return text if len(text) <= 80 and text == ",".join(swept) else f"{text[:80]}-{digest}"
