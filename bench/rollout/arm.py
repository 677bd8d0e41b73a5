"""One arm of the rollout bench, in a process of its own: plays the same batches its way and says how it went."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.harness import ROOT
from bench.rollout import workload
from verl.rollout.groups import Group, GroupRequest
from verl.trainer.buffer import GroupBuffer
from verl.trajectory import Trajectory

if TYPE_CHECKING:
    from verl.rollout.engine import VllmEngine
    from verl.rollout.worker import RolloutWorker

ArmName = Literal["lockstep", "lockstep_cached", "ours", "ours_ahead"]
AHEAD = 2
"""Staleness bound of ``ours_ahead``: how many batches rollout may run ahead of a learner that takes no time."""


@dataclass(frozen=True)
class Played:
    """What an arm did."""

    seconds: float
    episodes: int
    generated_tokens: int
    observation_tokens: int
    prefilled_tokens: int
    """Prompt tokens that the prefix cache did not have."""
    engine_busy_s: float
    cpu_s: float
    """CPU time of the arm's process while it played."""

    @property
    def episodes_per_s(self) -> float:
        """Throughput."""
        return self.episodes / self.seconds


def together(runs: Sequence[Played]) -> Played:
    """Several runs of one arm as one."""
    return Played(*(sum(column) for column in zip(*map(dataclasses.astuple, runs), strict=True)))


def run(
    name: ArmName,
    model: Path,
    url: str,
    batches: int,
    groups: int,
    *,
    core: int | None = None,
    first: int = 0,
    episodes: Path | None = None,
) -> Played:
    """Play ``batches`` batches of ``groups`` groups, from task ``first`` on, in a fresh process (on one core).

    ``episodes``: where the trajectories are written to, a line each.
    """
    code = "import sys; from bench.rollout.arm import child; child(*sys.argv[1:])"
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    arguments = [name, str(model), url, str(batches), str(groups), str(first), str(episodes or "")]
    done = subprocess.run([*pinned, sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"arm {name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Played(**json.loads(done.stdout.splitlines()[-1]))


def child(name: ArmName, model: str, url: str, batches: str, groups: str, first: str, episodes: str) -> None:
    """The process of an arm; its last line is ``Played`` as JSON."""
    size = int(groups)
    work = [workload.requests(size, first=int(first) + batch * size) for batch in range(int(batches))]
    if name.startswith("lockstep"):
        played, trajectories = asyncio.run(_lockstep(name, Path(model), url, work))
    else:
        # The group buffer counts from 0.
        renumbered = [[replace(request, number=request.number - int(first)) for request in batch] for batch in work]
        played, trajectories = asyncio.run(_ours(name, Path(model), url, renumbered))
    if episodes:
        Path(episodes).write_text("".join(json.dumps(trajectory.to_record()) + "\n" for trajectory in trajectories))
    print(json.dumps(dataclasses.asdict(played)))


async def _lockstep(
    name: ArmName, model: Path, url: str, work: Sequence[Sequence[GroupRequest]]
) -> tuple[Played, list[Trajectory]]:
    import aiohttp
    from transformers import AutoTokenizer

    from bench.rollout import lockstep
    from verl.rollout.engine import VllmEngine
    from verl.rollout.episode import EpisodeKey

    engine = VllmEngine(model, workload.engine_config(prefix_caching=name == "lockstep_cached"), seed=0)
    spec = workload.agent_spec(model, url)
    async with aiohttp.ClientSession() as session:
        search = lockstep.BatchSearch(url, session)
        make = spec.environment.build(
            protocol=spec.protocol.build(),
            tokenizer=AutoTokenizer.from_pretrained(model),
            retriever=search,
            max_context_tokens=spec.max_context_tokens,
        )
        clock = _Clock(engine)
        trajectories: list[Trajectory] = []
        for batch in work:
            episodes = [(request, sample) for request in batch for sample in range(request.samples)]
            keys = [EpisodeKey(0, r.stage, r.step, r.task.id, sample) for r, sample in episodes]
            environments = [make(request.task) for request, _ in episodes]
            trajectories += await lockstep.play(engine, search, environments, keys, [r for r, _ in episodes])
        played = clock.played(trajectories)
    await engine.close()
    return played, trajectories


async def _ours(
    name: ArmName, model: Path, url: str, work: Sequence[Sequence[GroupRequest]]
) -> tuple[Played, list[Trajectory]]:
    from verl.rollout.worker import RolloutWorker

    config = workload.engine_config(prefix_caching=True)
    worker = RolloutWorker(str(model), config, workload.agent_spec(model, url), run_seed=0)
    await worker.open()
    clock = _Clock(worker._engine)
    groups = await _through_buffer(worker, work, AHEAD if name == "ours_ahead" else 0)
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    played = clock.played(trajectories)
    await worker.close()
    return played, trajectories


async def _through_buffer(
    worker: RolloutWorker, work: Sequence[Sequence[GroupRequest]], max_staleness: int
) -> list[Group]:
    """As the trainer does it: the group buffer says what may start, and a step takes a batch as soon as it is there."""
    numbered = {request.number: request for batch in work for request in batch}
    buffer: GroupBuffer[Group] = GroupBuffer(len(work[0]), max_staleness, total=len(numbered))
    running: set[asyncio.Task[list[Group]]] = set()
    taken: list[Group] = []
    for _ in work:
        running |= {asyncio.create_task(worker.run_groups([numbered[number]])) for number in buffer.startable()}
        while not buffer.ready():
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for group in (group for task in done for group in task.result()):
                buffer.finish(group.number, group)
        taken += [group for _, group in buffer.take()]
        buffer.advance()
    return taken


class _Clock:
    """Reads the engine's counters before and after."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._before, self._began, self._cpu = engine.stats(), time.perf_counter(), time.process_time()

    def played(self, trajectories: Sequence[Trajectory]) -> Played:
        seconds, after, before = time.perf_counter() - self._began, self._engine.stats(), self._before
        assert all(trajectory.outcome != "aborted" for trajectory in trajectories)
        prompt = after.prompt_tokens - before.prompt_tokens
        return Played(
            seconds,
            len(trajectories),
            sum(trajectory.num_policy_tokens for trajectory in trajectories),
            sum(len(s) for t in trajectories for s in t.segments if s.kind == "observation"),
            prompt - (after.cached_prompt_tokens - before.cached_prompt_tokens),
            after.busy_s - before.busy_s,
            time.process_time() - self._cpu,
        )
