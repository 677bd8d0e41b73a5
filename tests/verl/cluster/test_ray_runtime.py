"""Ray as a run starts it: places taken at once, a shortage named, a dead actor told by us alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl.cluster.config import ClusterConfig
from verl.cluster.ray_runtime import path_faults, see_own_gpus

ROOT = Path(__file__).resolve().parents[3]

# In a process of its own: Ray, once it was started in one, is never quite out of it.
RUN = """
import asyncio, os, sys, time
from pathlib import Path
from verl.cluster.config import ClusterConfig
from verl.cluster.ray_runtime import RayRuntime, first_cause, has_died, this_machine
from verl.errors import InfrastructureError

class Worker:
    def pid(self): return os.getpid()
    def die(self): os._exit(1)

class Gate:
    def __init__(self): self.opened = asyncio.Event()
    async def passed(self): await self.opened.wait()
    async def open(self): self.opened.set()

async def main(runtime):
    worker = runtime.actor(Worker, 1, place=0)
    before = await worker.pid.remote()
    try:
        await worker.die.remote()
    except Exception as error:
        assert has_died(error), error
        assert "its process died" in str(first_cause(error, "rollout_0", []))
    runtime.kill(worker)
    again = runtime.actor(Worker, 1, place=0)
    assert await again.pid.remote() != before
    runtime.kill(again)
    gate = runtime.actor(Gate, 1, place=0)
    passing = [gate.passed.remote() for _ in range(1200)]  # 1,000 is Ray's own bound
    await asyncio.wait_for(asyncio.wrap_future(gate.open.remote().future()), 60)
    await asyncio.gather(*passing)
    await asyncio.sleep(2)  # Ray's notice of the death would come by now

with RayRuntime(ClusterConfig(), 1, Path(sys.argv[1])) as runtime:
    assert runtime.reserve([{"CPU": 1.0}], 60) == [this_machine()]
    asyncio.run(main(runtime))
    try:
        RayRuntime(ClusterConfig(), 1, Path(sys.argv[1])).reserve([{"CPU": 1.0}, {"CPU": 2.0}], 1)
    except InfrastructureError as error:
        print(error)
"""


def test_an_actor_that_dies_is_started_again_in_its_place_and_ray_says_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # short, as sockets need
        # A checkout may lie anywhere: Ray starts workers through a shell, which would read such a path as words.
        environment = Path(folder) / 'a "dir" (v2) $x&;*'
        environment.symlink_to(sys.prefix)
        command = [str(environment / "bin" / "python"), "-c", RUN, folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "raylet" not in done.stdout + done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("no room for 3 CPUs after 1 s: the cluster has 0 of 1 CPUs free")


def test_a_path_that_ray_cannot_start_from_is_refused_at_once() -> None:
    for python in ("/home/o'hara/.venv/bin/python", "/a\\b/.venv/bin/python"):
        [line] = path_faults(ClusterConfig(), python)
        assert line.startswith(f"Python is at {python}, and Ray starts nothing from a path with ")
        assert path_faults(ClusterConfig(address="auto"), python) == []
    assert path_faults(ClusterConfig()) == []


@pytest.mark.parametrize(("told", "seen"), [("", "0,1,2,3"), ("1", "2,3")])
def test_an_actor_sees_its_own_gpus_where_ray_leaves_them_to_others(
    monkeypatch: pytest.MonkeyPatch, told: str, seen: str
) -> None:
    monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", told)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": ["2", "3"]})
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    see_own_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
