"""A whole run on a Ray cluster of several nodes: the learner on one, the engine on another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.faults import runs
from bench.faults.campaign import lineage_faults
from tests.end_to_end.support import ROOT, metrics, run, start, wait_for_step

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
# A place takes a CPU, so learner and engine cannot share a node, and none of them is on the head.
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(3):
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def cluster() -> Iterator[tuple[str, psutil.Process]]:
    """Its address, and the process under which all others of it are."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), psutil.Process(process.pid)
        process.communicate("\n", timeout=60)


def test_weights_travel_to_the_engines_node_at_every_step(cluster: tuple[str, psutil.Process], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(
        run_dir, f"cluster.address={cluster[0]}", "evaluation.test_tasks=2", "evaluation.dev_tasks=2", "warmup.steps=10"
    )
    steps = [row for row in metrics(run_dir) if "reward" in row]
    assert len(steps) == 4
    assert all(row["logprob_diff_max"] < 1e-4 for row in steps), "the engine had the learner's weights"
    assert json.loads((run_dir / "summary.json").read_text())["aborted"] == 0
    token = json.loads((run_dir / "driver.json").read_text())["token"]
    assert not Path(f"/dev/shm/sleuth-{token}").exists()


def test_losing_the_learners_node_ends_the_run_with_one_line_and_it_goes_on_elsewhere(
    cluster: tuple[str, psutil.Process], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    keys = [f"cluster.address={cluster[0]}", "evaluation.test_tasks=2", "evaluation.dev_tasks=2", "warmup.steps=10"]
    process = start(run_dir, *keys)
    wait_for_step(process, run_dir, 12)
    (learner,) = (p for p in cluster[1].children(recursive=True) if p.cmdline()[:1] == ["ray::LearnerActor"])
    node = learner.parent()  # Ray's process that is the node
    assert node is not None
    node.kill()
    assert process.wait(180) == 3, runs.output(run_dir)[-2000:]
    last = runs.output(run_dir).rstrip().splitlines()[-1]
    assert "learner" in last
    assert "died" in last
    run(run_dir, *keys)
    assert lineage_faults(run_dir, 4) == []
