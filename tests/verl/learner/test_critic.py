"""PPO's critic: values start at 0, learn the return, and make token advantages; its state is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from verl.algorithms.config import AdvantageConfig, LossConfig, ValueLossConfig
from verl.data.samples import TrainingSample
from verl.learner.config import CriticConfig, LearnerConfig, OptimizerConfig
from verl.learner.critic import Critic
from verl.learner.distributed import make_layout
from verl.learner.learner import Learner
from verl.learner.loading import load_policy
from verl.learner.phase import Phase

MakeSamples = Callable[..., list[TrainingSample]]
GAE = AdvantageConfig(name="gae")
CONFIG = LearnerConfig(
    parameter_dtype="float64",
    compute_dtype="float64",
    critic=CriticConfig(OptimizerConfig(learning_rate=1e-2), ValueLossConfig(clip=None)),
)


def rewarded(samples: list[TrainingSample]) -> list[TrainingSample]:
    """Every other sample earns 1, on its last policy token."""
    result = []
    for index, sample in enumerate(samples):
        rewards = np.zeros(len(sample), np.float32)
        rewards[np.flatnonzero(sample.policy_mask)[-1]] = index % 2
        result.append(replace(sample, advantages=rewards))
    return result


def test_values_start_at_zero_so_that_the_return_is_the_reward(model_folder: Path, make_samples: MakeSamples) -> None:
    critic = Critic(model_folder, CONFIG, make_layout(CONFIG), None)
    samples = rewarded(make_samples(6))
    credited, columns, explained = critic.advantages(samples, GAE)
    assert explained == pytest.approx(0.0)
    policy_tokens = np.concatenate([s.advantages[s.policy_mask] for s in credited])
    assert policy_tokens.mean() == pytest.approx(0.0, abs=1e-6)
    for index, (sample, values, returns) in enumerate(zip(samples, columns["values"], columns["returns"], strict=True)):
        assert not values.any()
        assert returns[sample.policy_mask] == pytest.approx(index % 2)
        assert not returns[~sample.policy_mask].any()


def test_values_learn_the_returns(model_folder: Path, make_samples: MakeSamples) -> None:
    critic = Critic(model_folder, CONFIG, make_layout(CONFIG), None)
    critic.begin_phase(load_policy(model_folder, CONFIG, make_layout(CONFIG)), Phase(batches=60))
    samples = rewarded(make_samples(6))
    _, columns, _ = critic.advantages(samples, GAE)
    losses = [critic.update(samples, columns)["critic_value_loss"] for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    assert critic.advantages(samples, GAE)[2] > 0.8


def test_ppo_updates_both_models_and_goes_on_exactly_after_loading(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    samples = rewarded(make_samples(6))
    learner, resumed = (Learner(model_folder, CONFIG, seed=0) for _ in range(2))
    learner.begin_phase(Phase(OptimizerConfig(learning_rate=1e-3), LossConfig(), 10, 2, advantage=GAE))
    before = learner.weights_hash()
    assert "critic_value_loss" in learner.update(samples)
    assert learner.weights_hash() != before
    learner.save_checkpoint(tmp_path / "saved")
    resumed.load_checkpoint(tmp_path / "saved")
    assert resumed.update(samples) == learner.update(samples)


def test_without_gae_there_is_no_critic(model_folder: Path, make_samples: MakeSamples) -> None:
    learner = Learner(model_folder, CONFIG, seed=0)
    learner.begin_phase(Phase(OptimizerConfig(), LossConfig(), 10, advantage=AdvantageConfig()))
    assert "critic_value_loss" not in learner.update(make_samples(2))


def test_a_critic_starts_from_the_policy_as_it_is(model_folder: Path, make_samples: MakeSamples) -> None:
    learner = Learner(model_folder, CONFIG, seed=0)
    learner.begin_phase(Phase(OptimizerConfig(learning_rate=1e-2), LossConfig(name="weighted_nll"), 10))
    learner.update(make_samples(4))  # a warm-up
    learner.begin_phase(Phase(OptimizerConfig(), LossConfig(), 10, 2, advantage=GAE))
    assert learner._critic is not None
    policy, critic = learner.model.weights, learner._critic._model.weights
    shared = [name for name in critic if name != "lm_head.weight"]
    assert len(shared) > 10
    assert all(torch.equal(critic[name].to_local(), policy[name].to_local()) for name in shared)
