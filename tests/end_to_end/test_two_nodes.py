"""A whole run on a Ray cluster of two nodes: the learner on one, the engine on the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.support import ROOT, metrics, run

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
# One CPU each: a place takes one, so learner and engine cannot share a node.
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def address() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        assert cluster.stdout is not None
        yield cluster.stdout.readline().strip()
        cluster.communicate("\n", timeout=60)


def test_weights_travel_to_the_engines_node_at_every_step(address: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(run_dir, f"cluster.address={address}", "evaluation.test_tasks=2", "evaluation.dev_tasks=2", "warmup.steps=10")
    steps = [row for row in metrics(run_dir) if "reward" in row]
    assert len(steps) == 4
    assert all(row["logprob_diff_max"] < 1e-4 for row in steps), "the engine had the learner's weights"
    assert json.loads((run_dir / "summary.json").read_text())["aborted"] == 0
    token = json.loads((run_dir / "driver.json").read_text())["token"]
    assert not Path(f"/dev/shm/sleuth-{token}").exists()
