"""One rank of a learner without a cluster: optimizer steps on a file of trajectories, one JSON line of numbers a step.

    torchrun --nproc-per-node 8 -m verl.learner MODEL TRAJECTORIES.jsonl learner.compute_dtype=bfloat16

The way to profile the learner, and to measure it on a machine that has a GPU and nothing else of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from verl.algorithms.advantages import group_advantages
from verl.algorithms.config import AdvantageConfig, LossConfig
from verl.config.arguments import parse
from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.learner.config import LearnerConfig, OptimizerConfig
from verl.learner.distributed import init_process
from verl.learner.learner import Learner
from verl.learner.phase import Phase
from verl.trajectory import Trajectory

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Settings:
    """What the command line can set as ``key=value``."""

    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Precision, memory, packing."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """How rewards become advantages; trajectories without a reward get 1."""
    temperature: float = 1.0
    """The temperature that the trajectories were sampled with."""


def read_samples(path: Path, config: AdvantageConfig) -> list[TrainingSample]:
    """Trajectories of a jsonl file as training samples; the samples of one task are a group.

    Raises UserError for an advantage that needs what no such file has, and if no trajectory can be used.
    """
    lacking = {
        "accepted answers": config.needs_gold,
        "greedy episodes": config.needs_greedy,
        "a critic": config.needs_critic,
        "parts of the reward": bool(config.parts),
    }
    for what in (what for what, needed in lacking.items() if needed):
        raise UserError(f"advantage.name={config.name} needs {what}, which this command has not: write another one")
    lines = path.read_text(encoding="utf-8").splitlines()
    trajectories = [Trajectory.from_record(json.loads(line)) for line in lines if line.strip()]
    usable = [trajectory for trajectory in trajectories if trajectory.outcome != "aborted"]
    if not usable:
        raise UserError(f"{path}: no usable trajectory in it")
    numbers = {task: number for number, task in enumerate(dict.fromkeys(t.task_id for t in usable))}
    groups = [numbers[trajectory.task_id] for trajectory in usable]
    advantages = torch.ones(len(usable), dtype=torch.float64)
    if all(trajectory.reward is not None for trajectory in usable):
        rewards = torch.tensor([trajectory.reward for trajectory in usable], dtype=torch.float64)
        lengths = torch.tensor([trajectory.num_policy_tokens for trajectory in usable])
        advantages = group_advantages(rewards, torch.tensor(groups), config, lengths=lengths)
    rows = zip(usable, advantages.tolist(), strict=True)
    return [TrainingSample.from_trajectory(trajectory, advantage) for trajectory, advantage in rows]


def join_group() -> str:
    """Join the group that torchrun describes in the environment (alone without it); returns the device."""
    # Before CUDA is asked for anything: a rank computes on the first card that it sees (``init_process``).
    if "LOCAL_RANK" in os.environ:
        os.environ[_VISIBLE] = own_card(int(os.environ["LOCAL_RANK"]), os.environ.get(_VISIBLE))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "0"))
    init_process(rank, world_size, address, port, device)
    return device


def own_card(local_rank: int, visible: str | None) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` says to this rank alone, of what it says to all (``visible``, None if unset)."""
    if visible is None:
        return str(local_rank)
    cards = [card for card in visible.split(",") if card]
    return cards[local_rank] if local_rank < len(cards) else ""


def timed_update(learner: Learner, samples: Sequence[TrainingSample], temperature: float) -> dict[str, float]:
    """One update with its wall time, tokens a second, TFLOP/s a rank by formula, and the peak of GPU memory."""
    start = time.perf_counter()
    metrics = learner.update(samples, temperature)  # reads numbers back, so it has ended on the device too
    seconds = time.perf_counter() - start
    flops = learner.training_flops(samples) / dist.get_world_size()
    metrics |= {"seconds": seconds, "tokens_per_second": sum(map(len, samples)) / seconds}
    metrics["tflops_per_rank"] = flops / seconds / 1e12
    if learner.device.type == "cuda":
        metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, step, print."""
    parser = argparse.ArgumentParser(prog="python -m verl.learner", description=__doc__)
    parser.add_argument("model", type=Path, help="Hugging Face model folder")
    parser.add_argument("trajectories", type=Path, help="jsonl file of trajectory records")
    parser.add_argument("--steps", type=int, default=1, help="updates on the same batch; the first one warms up")
    parser.add_argument("--load", type=Path, help="continue from this checkpoint")
    parser.add_argument("--save", type=Path, help="write a checkpoint there at the end")
    parser.add_argument("overrides", nargs="*", help="key=value: learner.*, optimizer.*, loss.*, advantage.*")
    options = parser.parse_args(arguments)
    settings = parse(Settings, options.overrides)
    samples = read_samples(options.trajectories, settings.advantage)
    join_group()
    learner = Learner(options.model, settings.learner, seed=0)
    if options.load:
        learner.load_checkpoint(options.load)
    else:
        updates = settings.learner.updates_per_batch
        learner.begin_phase(Phase(settings.optimizer, settings.loss, options.steps, updates))
    for _ in range(options.steps):
        metrics = timed_update(learner, samples, settings.temperature)
        if dist.get_rank() == 0:
            print(json.dumps(metrics), flush=True)
    if options.save:
        learner.save_checkpoint(options.save)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
