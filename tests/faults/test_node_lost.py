"""A node of the Ray cluster is lost with a worker on it: its groups are played on the others, in real Ray processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from verl.cluster.pool import RolloutPool
from verl.data.tasks import Task
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Sampling
from verl.sync.manager import Newest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Worker:
    """Plays a group in a second, on whatever node it was put."""

    async def open(self) -> None: ...

    async def run_groups(self, requests: Sequence[GroupRequest]) -> list[Group]:
        await asyncio.sleep(1)
        return [Group(request.number, request.task) for request in requests]


@pytest.fixture
def cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_health_check_period_ms", "500")
    os.environ.setdefault("RAY_health_check_timeout_ms", "2000")
    import ray
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    cluster.second = cluster.add_node(num_cpus=1, resources={"second": 1}, **memory)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


async def test_groups_of_a_lost_node_are_played_on_the_other(cluster: Any, tmp_path: Path) -> None:
    import ray

    def start(number: int) -> Any:
        place = {"second": 0.1} if number else {}
        return ray.remote(Worker).options(num_cpus=0.5, resources=place).remote()

    pool = RolloutPool(start, [tmp_path / "0.log", tmp_path / "1.log"], Newest(), open_timeout_s=120)
    await pool.ready()
    requests = [GroupRequest(n, Task(f"t{n}", "q", ("a",)), 2, "train", "train", 0, Sampling()) for n in range(8)]
    playing = asyncio.ensure_future(pool.run(requests))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(cluster.remove_node, cluster.second, allow_graceful=False)
    groups = await asyncio.wait_for(playing, 300)
    assert [group.number for group in groups] == list(range(8))
    pool.stop_starting()
