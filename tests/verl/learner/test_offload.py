"""Weights and moments in host memory: the same numbers from another place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from verl.algorithms.config import LossConfig
from verl.data.samples import TrainingSample
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.learner import Learner
from verl.learner.optimizer import MOMENTS, move_moments
from verl.learner.phase import Phase

MakeSamples = Callable[..., list[TrainingSample]]
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)


@pytest.mark.parametrize("offload", ["optimizer", "all"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
def test_offload_changes_where_and_not_what(
    offload: Literal["optimizer", "all"],
    lora: LoraConfig | None,
    model_folder: Path,
    make_samples: MakeSamples,
    tmp_path: Path,
) -> None:
    plain = LearnerConfig(lora=lora, max_tokens_per_microbatch=64)
    learners = [Learner(model_folder, config, seed=0) for config in (plain, replace(plain, offload=offload))]
    numbers = []
    for learner in learners:
        learner.begin_phase(Phase(OPTIMIZER, LossConfig(kl_coefficient=0.1), 10))
        numbers.append([learner.update(make_samples(6, seed=seed)) for seed in range(2)])
    assert numbers[0] == numbers[1]
    assert learners[0].weights_hash() == learners[1].weights_hash()
    learners[1].save_checkpoint(tmp_path / "saved")
    learners[0].load_checkpoint(tmp_path / "saved")  # a checkpoint does not say where things lay
    again = make_samples(6, seed=2)
    assert learners[0].update(again) == learners[1].update(again)


def test_moments_travel_and_the_step_count_stays() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(3)
    optimizer.step()
    before = {name: optimizer.state[weight][name].clone() for name in MOMENTS}
    move_moments(optimizer, torch.device("cpu"))
    assert all(torch.equal(optimizer.state[weight][name], before[name]) for name in MOMENTS)
    move_moments(optimizer, torch.device("meta"))  # any device that is not the CPU will do here
    assert {optimizer.state[weight][name].device.type for name in MOMENTS} == {"meta"}
    assert optimizer.state[weight]["step"].device.type == "cpu"
