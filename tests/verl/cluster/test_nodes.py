"""Two Ray nodes on one machine: weights reach the other node once, piece by piece, and go again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# In a process of its own: Ray, once it was started in one, is never quite out of it.
TWO_NODES = """
import asyncio, os, sys
from dataclasses import replace
from pathlib import Path
import ray, torch
from ray.cluster_utils import Cluster
from verl.cluster.ray_runtime import has_died, on_node, this_node
from verl.sync import relay
from verl.sync.file import mapped_weights, publish

run = f"sleuth-test{os.getpid()}"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
home, there = this_node(), other.node_id
assert home != there

async def main():
    ways = relay.Relay(
        lambda node: on_node(relay.RelayActor, node, run, node), here=home, has_died=has_died, explain=lambda e: e
    )
    tensors = [("a", torch.arange(9_000_000.0)), ("b", torch.ones(7, dtype=torch.bfloat16))]  # three pieces
    update = replace(publish(iter(tensors), 3, f"/dev/shm/{run}"), node=home)
    assert update.size_bytes > 2 * relay.PIECE_BYTES
    assert await ways.at(update, home) is update
    first, second = await asyncio.gather(ways.at(update, there), ways.at(update, there))
    assert first == second and first.node == there and first.path != update.path
    with mapped_weights(first) as weights:
        for (name, tensor), (expected, original) in zip(weights, tensors, strict=True):
            assert name == expected and torch.equal(tensor, original)
    await ways.release(update)
    assert not Path(first.path).exists() and not Path(update.path).exists()
    gone = replace(update, path=update.path + ".gone")
    try:
        await ways.at(gone, there)
    except Exception as error:
        assert type(error).__name__ == "InfrastructureError" and "did not reach node" in str(error), error
    else:
        raise AssertionError("a file that is gone was sent")
    await ways.close()

asyncio.run(main())
print("left", sorted(path.name for path in Path(f"/dev/shm/{run}").iterdir()))
ray.shutdown(); cluster.shutdown()
os.system(f"rm -rf /dev/shm/{run}")
"""


@pytest.mark.timeout(280)
def test_weights_reach_another_node_once_and_are_removed_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TWO_NODES], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "left ['.owner']"
