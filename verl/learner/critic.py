"""The critic of PPO: a value model with an optimizer of its own, and the token advantages made from its values.

A sample that is trained with a critic carries rewards where others carry their advantage: the ``advantages`` of its
policy tokens are the rewards of those tokens (most often of the last one alone), and are replaced here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verl.algorithms.config import AdvantageConfig
from verl.algorithms.gae import gae_advantages
from verl.algorithms.tokens import Totals
from verl.algorithms.value_loss import explained_variance, value_objective
from verl.data.batch import PackedBatch
from verl.data.samples import TrainingSample
from verl.learner.checkpoint import Snapshot
from verl.learner.config import CriticConfig, LearnerConfig
from verl.learner.distributed import Layout
from verl.learner.engine import Engine, parts_of
from verl.learner.export import copy_policy
from verl.learner.flops import FlopsModel
from verl.learner.loading import load_value_model, recompute_layers
from verl.learner.metrics import combine_steps
from verl.learner.model import PolicyModel
from verl.learner.phase import Phase
from verl.trajectory import FloatArray


class Critic:
    """Values of a phase that trains with GAE. Starts from the decoder of the loaded model or of the policy."""

    def __init__(self, model_path: Path, config: LearnerConfig, layout: Layout, rejected_folder: Path | None) -> None:
        self._config: CriticConfig = config.critic
        self._model = load_value_model(model_path, config, layout)
        self._engine = Engine(self._model, FlopsModel.of(self._model.lm), config, layout, rejected_folder)
        self._updates_per_batch = 1

    def begin_phase(self, policy: PolicyModel, phase: Phase) -> None:
        """Start with a fresh optimizer from the decoder of the policy as it is: after a warm-up it reads better."""
        copy_policy(policy, {name: w for name, w in self._model.weights.items() if name != "lm_head.weight"})
        self._start(phase)

    def _start(self, phase: Phase) -> None:
        self._updates_per_batch = phase.updates_per_batch
        self._engine.begin_phase(self._config.optimizer, phase.optimizer_steps)

    def recompute_layers(self, count: int) -> None:
        """See ``loading.recompute_layers``."""
        recompute_layers(self._model.lm, count)

    def advantages(
        self, samples: Sequence[TrainingSample], config: AdvantageConfig
    ) -> tuple[list[TrainingSample], dict[str, list[FloatArray]], float]:
        """Samples with token advantages, the columns ``update`` needs, and the share of variance the values explain."""
        values = self._engine.evaluate(self._model, samples, self._model)
        masks = [sample.policy_mask for sample in samples]
        flat = torch.as_tensor(np.concatenate([v[m] for v, m in zip(values, masks, strict=True)]), dtype=torch.float64)
        sequence = torch.as_tensor(np.repeat(np.arange(len(samples)), [int(mask.sum()) for mask in masks]))
        rewards = np.concatenate([sample.advantages[mask] for sample, mask in zip(samples, masks, strict=True)])
        advantages, returns = gae_advantages(torch.as_tensor(rewards, dtype=torch.float64), flat, sequence, config)
        credited = [
            replace(sample, advantages=column)
            for sample, column in zip(samples, _columns(advantages, masks), strict=True)
        ]
        return credited, {"values": values, "returns": _columns(returns, masks)}, explained_variance(flat, returns)

    def update(self, samples: Sequence[TrainingSample], columns: dict[str, list[FloatArray]]) -> dict[str, float]:
        """Move values towards returns, in as many steps as the policy takes. Metrics begin with ``critic_``."""
        steps = []
        for rows in parts_of(len(samples), self._updates_per_batch):
            chosen = {name: [column[i] for i in rows] for name, column in columns.items()}
            steps.append(self._take_step([samples[i] for i in rows], chosen))
        return {f"critic_{name}": value for name, value in combine_steps(steps).items()}

    def _take_step(self, samples: Sequence[TrainingSample], columns: dict[str, list[FloatArray]]) -> dict[str, float]:
        totals = Totals.count([sample.num_policy_tokens for sample in samples])

        def objective(batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
            values = self._model(batch)
            old, returns = (batch.columns[name].to(values.dtype) for name in ("values", "returns"))
            share = value_objective(values, old, returns, totals, self._config.loss)
            return share.loss, {**share.metrics, "loss": share.loss.detach()}

        return self._engine.step(samples, columns, objective)

    def snapshot(self) -> Snapshot:
        """Weights, optimizer and schedule, to be saved."""
        return self._engine.snapshot({})

    def load(self, folder: Path, phase: Phase) -> None:
        """Continue where ``snapshot`` was called. Collective."""
        self._start(phase)
        self._engine.load(folder)


def _columns(values: Tensor, masks: Sequence[npt.NDArray[np.bool_]]) -> list[FloatArray]:
    """``[n]`` values of policy tokens as one ``[tokens]`` array a sample, 0 where its mask is False."""
    parts = np.split(values.numpy().astype(np.float32), np.cumsum([int(mask.sum()) for mask in masks])[:-1])
    columns = []
    for part, mask in zip(parts, masks, strict=True):
        column = np.zeros(len(mask), dtype=np.float32)
        column[mask] = part
        columns.append(column)
    return columns
