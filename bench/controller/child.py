"""One step of the controller at one size, in a process of its own: its stages timed, its memory read."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.controller import episodes
from bench.harness import ROOT
from verl.rollout.episodes import episodes_of
from verl.rollout.groups import GroupRequest
from verl.rollout.interfaces import Sampling


@dataclass(frozen=True)
class Step:
    """Seconds of the stages of one step, and what the controller's process took."""

    episodes: int
    tokens: int
    """Of one episode."""
    scoring: float
    """In the rollout worker."""
    collecting: float
    """Groups from the worker to the controller, through Ray."""
    assigning: float
    """Summary, advantages, training samples."""
    sending: float
    """Samples from the controller to the learner, through Ray."""
    packing: float
    """In the learner: the plan for its rank and the tensors of every micro-batch."""
    writing: float
    """Trajectories to the run folder."""
    memory_mib: float
    """Peak resident memory of the controller, shared memory included, above what it had before the step."""

    @property
    def seconds(self) -> float:
        """All stages."""
        return self.scoring + self.collecting + self.assigning + self.sending + self.packing + self.writing


def run(count: int, tokens: int) -> Step:
    """One step of ``count`` episodes of ``tokens`` tokens."""
    code = "import sys; from bench.controller.child import child; child(*map(int, sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(count), str(tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a step of {count} episodes ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Step(**json.loads(done.stdout.splitlines()[-1]))


def child(count: int, tokens: int) -> None:
    """The process of one step; its last line is ``Step`` as JSON."""
    with tempfile.TemporaryDirectory(prefix="ctl") as folder:
        print(json.dumps(dataclasses.asdict(asyncio.run(_step(count, tokens, Path(folder))))))


async def _step(count: int, tokens: int, folder: Path) -> Step:
    from bench.controller.stubs import StubLearner, StubRollout
    from verl.cluster.config import ClusterConfig
    from verl.cluster.ray_runtime import RayRuntime

    # Several times the trajectories of a step, as its key says: 20 bytes a token cover ids, credit and texts.
    store_mib = 128 + (count * tokens * 20 >> 20)
    with RayRuntime(ClusterConfig(object_store_mib=store_mib), 2, folder / "ray") as runtime:
        rollout = runtime.actor(StubRollout, 1, tokens)
        learner = runtime.actor(StubLearner, 1, 1)
        await _measure(rollout, learner, episodes.GROUP, tokens, folder)  # imports, first calls
        before = _resident_mib()
        spent, seconds = await _measure(rollout, learner, count, tokens, folder)
        memory = _peak_mib() - before
    making, scoring, packing = spent
    return Step(
        count,
        tokens,
        scoring,
        seconds["rollout"] - making - scoring,
        seconds["assign"],
        seconds["learn"] - packing,
        packing,
        seconds["write"],
        memory,
    )


async def _measure(
    rollout: Any, learner: Any, count: int, tokens: int, folder: Path
) -> tuple[tuple[float, float, float], dict[str, float]]:
    """The stages of ``Controller._step`` in their order, each timed."""
    from verl.algorithms.config import AdvantageConfig
    from verl.cluster.learners import LearnerGroup
    from verl.trainer.assign import assign
    from verl.trainer.run_folder import RunFolder
    from verl.trainer.summary import summarize

    run_folder = RunFolder.open(folder / f"run{count}", "", fresh=True)
    requests = [
        GroupRequest(number, episodes.task(number), episodes.GROUP, "train", "train", 0, Sampling())
        for number in range(count // episodes.GROUP)
    ]
    before = await rollout.spent.remote(), await learner.spent.remote()
    seconds, clock = {}, time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        seconds[stage], clock = time.perf_counter() - clock, time.perf_counter()

    groups = await rollout.run_groups.remote(requests)
    lap("rollout")
    summarize(groups)
    samples, _ = assign(groups, AdvantageConfig(), drop_uniform=False)
    lap("assign")
    done = await LearnerGroup([learner], []).update(samples, 1.0)
    assert done["tokens"] == count * tokens, done
    lap("learn")
    run_folder.write_trajectories("train", 1, episodes_of(groups, "train"), keep=1)
    lap("write")
    after = await rollout.spent.remote(), await learner.spent.remote()
    return (
        after[0].making - before[0].making,
        after[0].scoring - before[0].scoring,
        after[1].packing - before[1].packing,
    ), seconds


def _resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 2**20


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
