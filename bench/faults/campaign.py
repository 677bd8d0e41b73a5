"""Runs whose driver is killed with SIGKILL at seeded random points, started again until they end, and compared.

    bash cmd/bench.sh faults/campaign [--quick] [mode=deterministic,asynchronous] [kills=20] [seed=0] [run keys ...]

For each mode (all of ``MODES`` unless some are named) one run is made undisturbed; then others of the same
configuration are killed, in all ``kills`` times: half at random points of their life, most of which is their start, and
half while they train. All begin with a model that searches, but for ``warmup``, which is killed while it is taught.
After each kill the processes and the shared memory that are left are counted; each run that came to its end is compared
with the undisturbed one. Where ``deterministic=true``, metrics, trajectories, evaluations and weights are identical. In
every mode each group was trained on once and none left out (``trained.jsonl``, one lineage of weights), no episode is
lost, no sample is older than the bound.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from bench.faults import runs
from bench.harness import Figure, main
from bench.main_job.warm import warm_model
from verl.trainer.run_folder import RunFolder

STEPS, PROMPTS, SAMPLES, STALENESS = 20, 4, 4, 2
SMALL = (
    "warmup.steps=0",
    f"trainer.steps={STEPS}",
    f"trainer.prompts_per_step={PROMPTS}",
    f"trainer.samples_per_prompt={SAMPLES}",
    "trainer.save_every_steps=2",  # so that a kill costs steps that were logged already
    "trainer.drop_uniform_groups=false",
    "evaluation.every_steps=3",
    "evaluation.dev_tasks=4",
    "evaluation.test_tasks=6",
    "rollout.engine.kv_cache_gib=0.125",
    "cluster.start_timeout_s=600",
)
"""A start and a loop of the same length, roughly."""
MODES = {
    "deterministic": ("deterministic=true",),
    "asynchronous": (f"trainer.max_staleness={STALENESS}",),
    "ppo": ("deterministic=true", "trainer.advantage.name=gae"),
    "dapo": ("deterministic=true", "trainer.dynamic_sampling.enabled=true", "learner.updates_per_batch=2"),
    "adaptive_kl": (
        *("deterministic=true", "trainer.kl_reward.coefficient=0.05", "trainer.kl_reward.controller=adaptive"),
        "trainer.kl_reward.horizon_sequences=100",
    ),
    "lora": ("deterministic=true", "learner.lora.rank=8"),
    "background": ("deterministic=true", "trainer.save_in_background=true"),
    "warmup": (
        *("deterministic=true", "model=embedded", "trainer.steps=2"),
        *("warmup.steps=300", "warmup.sequences_per_step=16", "warmup.save_every_steps=50"),
    ),
}
QUICK = ("trainer.steps=2", "evaluation.dev_tasks=1", "evaluation.test_tasks=1")
"""As little of everything as shows that the campaign itself works, from a model that knows nothing."""
RUN_LIMIT_S = 900


@dataclass(frozen=True)
class Kill:
    """One kill and what it left."""

    mode: str
    run: int
    after_s: float
    """Since this start of the driver, or since its first metrics."""
    where: str
    """What the run was doing."""
    processes: int
    """Of the run, alive 10 s later."""
    segments: int
    """Files of /dev/shm that nobody uses and that were not there before."""
    clean_after_s: float


@dataclass(frozen=True)
class Ended:
    """A run that came to its end."""

    folder: Path
    seconds: float
    """Of its last start."""

    def training_s(self) -> float:
        """From its first metrics to its last."""
        times = [row["time"] for row in runs.rows(self.folder)]
        return float(times[-1] - times[0])


def figures(quick: bool, modes: Sequence[str], kills: int, seed: int, arguments: Sequence[str]) -> Iterator[Figure]:
    """``--quick`` kills one short run, once, in the first mode."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        modes = modes[:1] if quick else modes
        warm = "embedded" if {*modes} == {"warmup"} else warm_model(Path(folder) / "warm", quick=quick)
        for mode in modes:
            keys = [f"model={warm}", *MODES[mode], *arguments]
            yield from campaign(Path(folder) / mode, mode, 1 if quick else kills, seed, keys, quick)


def campaign(folder: Path, mode: str, kills: int, seed: int, arguments: Sequence[str], quick: bool) -> Iterator[Figure]:
    """All runs of one mode."""
    folder.mkdir()
    arguments = [*arguments, *QUICK] if quick else arguments
    steps = _steps([*SMALL, *arguments])
    whole = finish(folder / "undisturbed", arguments)
    training_s = whole.training_s()
    print(f"{mode}: undisturbed in {whole.seconds:.0f} s, {training_s:.0f} s of them training", flush=True)
    life_s = whole.seconds / 4 if quick else whole.seconds
    identical = "deterministic=true" in arguments
    random, suffered, ended = Random(f"{mode}-{seed}"), list[Kill](), list[Ended]()
    while len(suffered) < kills:
        run_dir, number = folder / f"run_{len(ended)}", len(ended)
        done = False
        while not done and len(suffered) < kills:
            began = time.monotonic()
            working = random.random() < 0.5
            after_s = random.uniform(0, training_s) if working else random.uniform(0.5, life_s)
            kill = start_and_kill(run_dir, arguments, mode, number, after_s, working=working)
            done = kill is None
            if kill is None:
                life_s = time.monotonic() - began  # other work on the machine changes it
            else:
                suffered.append(kill)
                print(json.dumps(asdict(kill)), flush=True)
        ended.append(finish(run_dir, arguments))
        for fault in differences(ended[-1].folder, whole.folder, steps, identical=identical):
            print(f"{mode}, run {number}: {fault}", flush=True)
    faults = [differences(run.folder, whole.folder, steps, identical=identical) for run in ended]
    searches = sum(round(row["calls"] * row["n"]) for row in runs.rows(whole.folder) if "reward" in row)
    yield Figure.at_least(f"{mode}: searches in a run", searches, "", 1).judged(not quick)
    yield Figure.at_least(f"{mode}: kills", len(suffered), "", kills)
    yield Figure(f"{mode}: runs that were killed and ended", len(ended), "")
    yield Figure.at_most(f"{mode}: runs that differ or lost something", sum(map(bool, faults)), "", 0)
    yield Figure.at_most(f"{mode}: processes left 10 s after a kill", sum(kill.processes for kill in suffered), "", 0)
    yield Figure.at_most(f"{mode}: shared memory left", sum(kill.segments for kill in suffered), "files", 0)
    yield Figure(f"{mode}: slowest clean-up", max(kill.clean_after_s for kill in suffered), "s")


def start_and_kill(
    run_dir: Path, arguments: Sequence[str], mode: str, number: int, after_s: float, *, working: bool
) -> Kill | None:
    """Start the run and kill its driver after a while; None if it came to its end before.

    ``working``: the while begins when this start has written its first metrics.
    """
    before, written = runs.shared_memory(), _written(run_dir)
    process = runs.launch(run_dir, [*SMALL, *arguments])
    deadline = None if working else time.monotonic() + after_s
    while deadline is None or time.monotonic() < deadline:
        if deadline is None and _written(run_dir) != written:
            deadline = time.monotonic() + after_s
        if process.poll() is not None:
            _check_ended(process.returncode, run_dir)
            return None
        time.sleep(0.02)
    where = stage(run_dir)
    runs.stop(process, signal.SIGKILL)
    killed = time.monotonic()
    processes, memory = runs.left_behind(run_dir, before) if runs.token(run_dir) else ({}, set[str]())
    for left in (*processes.values(), *sorted(f"/dev/shm/{name}" for name in memory)):
        print(f"left: {left}", flush=True)
    seconds = round(time.monotonic() - killed, 2)
    return Kill(mode, number, round(after_s, 2), where, len(processes), len(memory), seconds)


def _steps(arguments: Sequence[str]) -> int:
    return [int(value) for key, _, value in (a.partition("=") for a in arguments) if key == "trainer.steps"][-1]


def _written(run_dir: Path) -> int:
    """When metrics were last written; 0 before."""
    path = run_dir / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def finish(run_dir: Path, arguments: Sequence[str]) -> Ended:
    """Start the run, undisturbed, until its end."""
    began = time.monotonic()
    process = runs.launch(run_dir, [*SMALL, *arguments])
    _check_ended(process.wait(RUN_LIMIT_S), run_dir)
    return Ended(run_dir, time.monotonic() - began)


def _check_ended(status: int, run_dir: Path) -> None:
    if status != 0:
        raise SystemExit(f"{run_dir}: exit status {status}\n{runs.output(run_dir)[-3000:]}\n{runs.logs(run_dir)}")


def stage(run_dir: Path) -> str:
    """What a run is doing, as far as its folder tells."""
    if (run_dir / "summary.json").exists():
        return "after the summary"
    rows = runs.rows(run_dir)
    where = f"step {rows[-1]['step']}" if rows else "start"
    if list((run_dir / "checkpoints").glob("*.writing")):
        where += ", in a checkpoint"
    return where + (", before measured" if (run_dir / "before.json").exists() else "")


def differences(run_dir: Path, whole: Path, steps: int = STEPS, *, identical: bool) -> list[str]:
    """What a run that was killed and resumed lacks, has twice, or has otherwise than the undisturbed one."""
    faults = lineage_faults(run_dir, steps)
    if identical:
        if runs.without_timing(runs.rows(run_dir)) != runs.without_timing(runs.rows(whole)):
            faults.append("metrics.jsonl differs")
        ours, theirs = _summary(run_dir), _summary(whole)
        faults += [f"{key} differs" for key in ("weights_hash", "before", "after", "best") if ours[key] != theirs[key]]
        faults += [
            f"{file}: episodes differ" for file in _files(whole) if _episodes(run_dir, file) != _episodes(whole, file)
        ]
    return faults


def lineage_faults(run_dir: Path, steps: int = STEPS) -> list[str]:
    """Groups trained on twice or not at all, lost episodes, samples beyond the bound, steps missing or doubled."""
    rows = runs.rows(run_dir, "trained.jsonl")
    groups = sorted(number for row in rows for number in row["groups"])
    faults = []
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        faults.append(f"steps are {[row['step'] for row in rows]}")
    metrics = [row for row in runs.rows(run_dir) if "reward" in row]
    # Groups of dynamic sampling have numbers behind those of all steps; the metrics say how many there are.
    asked, refilled = steps * PROMPTS, sum(int(row.get("refilled_groups", 0)) for row in metrics)
    if groups[:asked] != list(range(asked)) or not len(set(groups)) == len(groups) == asked + refilled:
        faults.append(f"groups are {groups}")
    lost = len(groups) * SAMPLES - sum(row["episodes"] for row in rows)
    if lost:
        faults.append(f"{lost} episodes are lost")
    logged = [row["step"] for row in metrics]
    if logged != sorted(set(logged)) or len(logged) != steps:
        faults.append(f"metrics are of steps {logged}")
    for row in rows:
        step, expected = row["step"], len(row["groups"]) * SAMPLES
        episodes = list(RunFolder(run_dir).read_trajectories("train", step))
        versions = [version for episode in episodes if (version := episode.oldest_version()) is not None]
        if len(episodes) != expected or any(step - 1 - version > STALENESS for version in versions):
            faults.append(f"step {step} has {len(episodes)} episodes of versions {sorted(set(versions))}")
    return faults


def _summary(run_dir: Path) -> Any:
    return json.loads((run_dir / "summary.json").read_text())


def _files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "trajectories").iterdir())


def _episodes(run_dir: Path, file: str) -> list[Any]:
    """What the episodes of a file hold, but for how long a search took and whether somebody else had asked before."""
    stage, _, step = file.removesuffix(".jsonl.gz").rpartition("_")
    return [
        (
            t.task_id,
            t.sample,
            t.token_ids().tolist(),
            t.rollout_logprobs().tolist(),
            t.reward,
            t.reward_parts,
            t.outcome,
        )
        for t in RunFolder(run_dir).read_trajectories(stage, int(step))
    ]


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if "=" in argument]
    own = dict(argument.split("=", 1) for argument in given if argument.split("=")[0] in ("mode", "kills", "seed"))
    measure = partial(
        figures,
        modes=own.get("mode", ",".join(MODES)).split(","),
        kills=int(own.get("kills", 20)),
        seed=int(own.get("seed", 0)),
        arguments=[argument for argument in given if argument.split("=")[0] not in ("mode", "kills", "seed")],
    )
    main(measure, [argument for argument in sys.argv[1:] if "=" not in argument])
