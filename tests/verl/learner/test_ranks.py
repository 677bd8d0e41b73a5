"""The same step on any number of ranks, through the torchrun harness: each rank is a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from verl.cluster.processes import free_port
from verl.config.arguments import parse
from verl.data.samples import TrainingSample
from verl.data.splice import splice
from verl.learner.__main__ import Settings, read_samples
from verl.learner.config import LearnerConfig
from verl.learner.distributed import init_process
from verl.learner.learner import Learner
from verl.learner.phase import Phase
from verl.trajectory import Trajectory

KEYS = ("loss", "grad_norm", "entropy", "kl_old", "logprob_diff_mean", "logprob_diff_max")
FLOAT64 = ("learner.parameter_dtype=float64", "learner.compute_dtype=float64")


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)

    def ids(count: int) -> list[int]:
        return rng.integers(0, 61, count).tolist()

    path = tmp_path_factory.mktemp("data") / "trajectories.jsonl"
    with path.open("w") as file:
        for number in range(10):
            trajectory = Trajectory(f"task-{number // 5}", number % 5, outcome="finished", reward=float(rng.random()))
            trajectory.append_prompt(ids(4), "")
            for _ in range(int(rng.integers(1, 4))):
                size = int(rng.integers(1, 9))
                trajectory.append_generated(ids(size), "", (-rng.random(size)).tolist(), [0] * size, "stop")
                trajectory.append_observation(ids(6), "")
            file.write(json.dumps(trajectory.to_record()) + "\n")
    return path


def run(ranks: int, model: Path, data: Path, *arguments: str) -> list[dict[str, float]]:
    """What rank 0 prints, one dict an update. Fails with the ranks' errors if one fails."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "verl.learner", str(model), str(data), *arguments]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert all(process.returncode == 0 for process in processes), [stderr[-2000:] for _, stderr in outputs]
    return [json.loads(line) for line in outputs[0][0].splitlines() if line.startswith("{")]


def run_here(model: Path, data: Path, *overrides: str, steps: int = 1) -> list[dict[str, float]]:
    """The same on the one rank of this process."""
    settings = parse(Settings, overrides)
    learner = Learner(model, settings.learner, seed=0)
    learner.begin_phase(Phase(settings.optimizer, settings.loss, steps, settings.learner.updates_per_batch))
    samples = read_samples(data, settings.advantage)
    return [learner.update(samples, settings.temperature) for _ in range(steps)]


def assert_equal(ours: dict[str, float], theirs: dict[str, float], tolerance: float) -> None:
    for key in KEYS:
        assert ours[key] == pytest.approx(theirs[key], rel=tolerance, abs=1e-14), key


# The cap of 40 gives an odd number of micro-batches, so that one of two ranks ends with an empty one.
EXACT = (*FLOAT64, "learner.max_tokens_per_microbatch=40")


@pytest.mark.parametrize(
    ("ranks", "split"),
    [
        (2, ("learner.gradient_checkpointing=1",)),
        (2, ("learner.sequence_ranks=2", "loss.name=gspo", "loss.entropy_coefficient=0.01")),
        pytest.param(2, ("learner.shard_ranks=1",), marks=pytest.mark.slow),
        pytest.param(4, ("learner.shard_ranks=2", "learner.sequence_ranks=2"), marks=pytest.mark.slow),
        pytest.param(4, ("learner.sequence_ranks=4", "learner.gradient_checkpointing=true"), marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_any_division_of_ranks_gives_the_loss_and_gradient_of_one(
    ranks: int, split: tuple[str, ...], model_folder: Path, trajectories: Path
) -> None:
    alone = [setting for setting in split if "_ranks" not in setting]
    (expected,) = run_here(model_folder, trajectories, *EXACT, *alone)
    (ours,) = run(ranks, model_folder, trajectories, *EXACT, *split)
    assert_equal(ours, expected, 1e-9)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_in_float32(model_folder: Path, trajectories: Path) -> None:
    settings = ("learner.updates_per_batch=2",)
    alone = run_here(model_folder, trajectories, *settings, steps=2)
    for ours, theirs in zip(run(2, model_folder, trajectories, *settings, "--steps", "2"), alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "others"),
    [((), (2, 4)), (("learner.lora.rank=4",), ()), (("loss.kl_coefficient=0.1",), ())],
    ids=["full", "lora", "reference"],
)
def test_a_checkpoint_of_two_ranks_goes_on_with_any_number(
    extra: tuple[str, ...], others: tuple[int, ...], model_folder: Path, trajectories: Path, tmp_path: Path
) -> None:
    settings = (*FLOAT64, "optimizer.learning_rate=1e-3", *extra)
    saved = tmp_path / "saved"
    run(2, model_folder, trajectories, *settings, "--steps", "2", "--save", str(saved))
    straight = run_here(model_folder, trajectories, *settings, steps=3)[2]
    resumed = Learner(model_folder, parse(Settings, settings).learner, seed=0)
    resumed.load_checkpoint(saved)
    samples = read_samples(trajectories, parse(Settings, settings).advantage)
    assert_equal(resumed.update(samples), straight, 1e-6)
    for ranks in others:
        assert_equal(run(ranks, model_folder, trajectories, *settings, "--load", str(saved))[0], straight, 1e-6)


def test_a_wrong_key_is_one_line_and_exit_status_two(model_folder: Path, trajectories: Path) -> None:
    command = [sys.executable, "-m", "verl.learner", str(model_folder), str(trajectories), "learner.max_tokens=5"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "learner.max_tokens" in result.stderr
    assert "Traceback" not in result.stderr


def test_ranks_meet_at_a_port_that_nobody_can_take_meanwhile() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    context = multiprocessing.get_context("spawn")
    sums = context.Queue()
    other = context.Process(target=_sum_of_ranks, args=(1, port, None, sums))
    first = context.Process(target=_sum_of_ranks, args=(0, port, listener, sums))
    other.start()  # before anybody answers: it waits in the socket's queue
    first.start()
    listener.close()
    assert [sums.get(timeout=60), sums.get(timeout=60)] == [3.0, 3.0]
    for process in (other, first):
        process.join(10)
        assert process.exitcode == 0


def _sum_of_ranks(rank: int, port: int, listener: socket.socket | None, sums: multiprocessing.Queue[float]) -> None:
    init_process(rank, 2, "127.0.0.1", port, listener=listener)
    total = torch.tensor(float(rank + 1))
    dist.all_reduce(total)
    sums.put(float(total))
    dist.destroy_process_group()


def test_two_ranks_score_a_splice_alike_and_gather_the_head_once_a_pass(
    model_folder: Path,
) -> None:
    spliced = _spliced()
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    expected = [row.tolist() for row in learner.logprobs(spliced)]
    context = multiprocessing.get_context("spawn")
    rows = context.Queue()
    port = free_port()
    ranks = [context.Process(target=_score_on_rank, args=(rank, port, str(model_folder), rows)) for rank in range(2)]
    for process in ranks:
        process.start()
    for _ in ranks:  # every rank has all of them
        for ours, theirs in zip(rows.get(timeout=120), expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0


def _spliced() -> list[TrainingSample]:
    rng = np.random.default_rng(1)
    return [splice(rng.integers(0, 61, 5 + n).tolist(), rng.integers(0, 61, 1 + n).tolist()) for n in range(5)]


def _score_on_rank(rank: int, port: int, model: str, rows: multiprocessing.Queue[list[list[float]]]) -> None:
    torch.set_num_threads(1)
    init_process(rank, 2, "127.0.0.1", port)
    learner = Learner(model, LearnerConfig(max_tokens_per_microbatch=20), seed=0)
    rows.put([row.tolist() for row in learner.logprobs(_spliced())])
    learner.begin_phase(Phase(batches=2))
    learner.update(_spliced())
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        learner.update(_spliced())
    names = [event.name for event in recorded.events()]
    microbatches = sum("pre_forward (lm.model.layers.0)" in name for name in names)
    # Each of two layers forwards and backwards; what lies outside them, which has no name of its own, once.
    gathers = (sum(name.startswith("FSDP::all_gather (") for name in names), names.count("FSDP::all_gather"))
    assert gathers == (4 * microbatches, microbatches), (gathers, microbatches)
    dist.barrier()
    dist.destroy_process_group()
