"""A real pool on Ray with workers whose engine dies under a call while their process lives: the run goes on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# In a process of its own: Ray, once it was started in one, is never quite out of it.
RUN = """
import asyncio, sys
from pathlib import Path
from verl.cluster.config import ClusterConfig
from verl.cluster.pool import RolloutPool
from verl.cluster.ray_runtime import RayRuntime
from verl.data.tasks import Task
from verl.errors import EngineDiedError
from verl.rollout.engine_thread import EngineThread
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.engine_config import EngineConfig
from verl.rollout.interfaces import Sampling
from verl.sync import WeightUpdate
from verl.sync.canary import Canary
from verl.sync.manager import Newest, WeightManager

CALLS = ["update_weights", "probe", "sleep", "wake"]

class Idle:
    def has_work(self): return False
    def close(self): pass

class Worker:
    # The engine is our thread around nothing; a fatal call fails on it as vLLM's would.
    def __init__(self, dies_in): self.dies_in, self.thread, self.version = dies_in, EngineThread(Idle), 0
    def fail(self, method):
        if method == self.dies_in: raise RuntimeError("CUDA error: an illegal memory access was encountered")
    async def call(self, method): await self.thread.call(lambda: self.fail(method), fatal=True)
    async def open(self): pass
    async def run_groups(self, requests):
        await self.call("run_groups"); return [Group(r.number, r.task) for r in requests]
    async def update_weights(self, update, version): await self.call("update_weights"); self.version = version
    async def probe(self, prompts): await self.call("probe"); return [(self.version, 0.0, 0.0)]
    async def sleep(self): await self.call("sleep")
    async def wake(self): await self.call("wake")

class Learner:
    changes = 0
    async def publish(self, version, dtype, folder): return WeightUpdate(version, "/nowhere", (), 0, 0)
    async def probe(self, prompts): return [(0, 0.0, 0.0)]

class Noted(Canary):
    def check(self, who, engine): seen.append(engine[0][0])

seen = []

async def main(runtime):
    for dies_in in CALLS:
        started = []
        def start(number):
            started.append(number)
            return runtime.actor(Worker, 1, dies_in if len(started) == 1 else "")
        newest = Newest()
        log = Path(sys.argv[1]) / "log"
        pool = RolloutPool(start, [log], newest, open_timeout_s=60, max_restarts=1, sleeps=True)
        weights = WeightManager(
            newest, Learner(), pool, engine=EngineConfig(), folder="/nowhere", node="",
            canary=Noted([[1]], dtypes=["float32"], vocabulary=9), read_saved=None,
        )
        await pool.ready()
        for version in (1, 2):
            async with pool.resting(): pass
            await weights.push(version)
            [group] = await pool.run([GroupRequest(version, Task("t", "q", ("a",)), 1, "d", "s", 0, Sampling())])
        assert len(started) == 2, (dies_in, started)
        assert seen[-1] == 2, seen
        print(dies_in)
        pool.stop_starting()

with RayRuntime(ClusterConfig(), 8, Path(sys.argv[1])) as runtime:
    asyncio.run(main(runtime))
"""


@pytest.mark.timeout(280)
def test_an_engine_that_dies_in_a_call_is_replaced_on_ray() -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # short, as sockets need
        command = [sys.executable, "-c", RUN, folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["update_weights", "probe", "sleep", "wake"]
