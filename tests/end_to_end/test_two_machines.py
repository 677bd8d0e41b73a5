"""A whole run on two machines, made of network namespaces: neither can reach what the other has on its loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults import runs
from preprocess.embedded.source import Config, build
from search_agent.retrieval.server.access import TOKEN_VARIABLE
from tests.end_to_end.support import ROOT, SMALL, metrics
from verl.cluster.processes import parent_variable

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

MACHINES = {"sleuth_a": "10.99.7.1", "sleuth_b": "10.99.7.2"}
HEAD, OTHER = MACHINES
RAY = str(Path(sys.executable).with_name("ray"))
# Nodes find a token of Ray's in the home folder, where there is one, and would then ask the driver for it.
SECRET = {TOKEN_VARIABLE: "s3cret", "RAY_AUTH_MODE": "disabled"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def inside(machine: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", machine, *command]


@pytest.fixture
def machines() -> Iterator[None]:
    """Two hosts with a cable between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("making network namespaces takes root and iproute2")
    try:
        for name in MACHINES:
            ip("netns", "add", name)
        ip("link", "add", HEAD, "netns", HEAD, "type", "veth", "peer", "name", OTHER, "netns", OTHER)
        for name, address in MACHINES.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture
def cluster(machines: None, tmp_path: Path) -> Iterator[str]:
    """Ray on both, a CPU each, so that learner and engine are apart; the address of its head."""
    port = "6399"
    nodes = []
    for name, address in MACHINES.items():
        where = ["--head", f"--port={port}", "--include-dashboard=false"] if name == HEAD else []
        joined = where or [f"--address={MACHINES[HEAD]}:{port}"]
        start = [RAY, "start", *joined, f"--node-ip-address={address}", "--num-cpus=1", "--block"]
        limits = ["--object-store-memory=100000000", "--disable-usage-stats"]
        log = (tmp_path / f"{name}.log").open("w")
        environment = {**os.environ, **SECRET}
        nodes.append(subprocess.Popen(inside(name, *start, *limits), stdout=log, stderr=log, env=environment))
        time.sleep(8)
    assert all(node.poll() is None for node in nodes), (tmp_path / f"{HEAD}.log").read_text()
    yield f"{MACHINES[HEAD]}:{port}"
    for node in reversed(nodes):
        node.terminate()
        node.wait(60)


@pytest.fixture
def retriever(machines: None, tmp_path: Path) -> Iterator[str]:
    """A server on the first machine that the other one can reach, with the token."""
    corpus = build(Config(), out=ROOT / "data", seed=0).train.corpus
    command = [sys.executable, "-m", "search_agent.retrieval.server", f"corpus={corpus}", "port=8000"]
    with subprocess.Popen(
        inside(HEAD, *command, f"host={MACHINES[HEAD]}"), cwd=ROOT, env={**os.environ, **SECRET}
    ) as server:
        yield f"http://{MACHINES[HEAD]}:8000"
        server.terminate()


def test_learner_and_engine_on_machines_of_their_own(cluster: str, retriever: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    keys = [*SMALL, f"cluster.address={cluster}", f"retriever={retriever}", f"run_dir={run_dir}"]
    short = ["evaluation.test_tasks=2", "evaluation.dev_tasks=2", "warmup.steps=10"]
    done = subprocess.run(
        inside(HEAD, sys.executable, "-m", "search_agent.train", *keys, *short),
        cwd=ROOT,
        env={**os.environ, **SECRET, **parent_variable(), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + runs.logs(run_dir)
    steps = [row for row in metrics(run_dir) if "reward" in row]
    assert len(steps) == 4
    assert all(row["logprob_diff_max"] < 1e-4 for row in steps), "the engine had the learner's weights"
    assert json.loads((run_dir / "summary.json").read_text())["aborted"] == 0
