"""What policy and critic share: a sharded module, its optimizer, and how a global batch becomes one optimizer step.

The engine packs samples, gives each rank its share, runs the caller's objective on each micro-batch, adds gradients
and metrics over micro-batches and ranks, and steps, or skips a step that is not finite. What is computed on a
micro-batch is the caller's business; its losses and metrics must be shares of global sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from verl.data.batch import PackedBatch, pack_samples
from verl.data.packing import MicroBatch, pack
from verl.data.samples import TrainingSample
from verl.learner import checkpoint
from verl.learner.config import LearnerConfig, OptimizerConfig
from verl.learner.distributed import Layout, reduce_over_ranks
from verl.learner.flops import FlopsModel
from verl.learner.model import PackedModel, scoring
from verl.learner.nonfinite import SkippedSteps
from verl.learner.optimizer import (
    HOST,
    global_grad_norm,
    learning_rate,
    make_optimizer,
    move_moments,
    scale_gradients,
    set_rate,
)
from verl.trajectory import FloatArray

Columns = Mapping[str, Sequence[FloatArray]]
"""Named values beside the samples: one ``[tokens]`` array a sample."""
Objective = Callable[[PackedBatch], tuple[Tensor, dict[str, Tensor]]]
"""A micro-batch's share of the loss, with gradient, and of the metrics."""


class Engine:
    """One rank's part of a sharded model in training."""

    def __init__(
        self,
        model: PackedModel,
        flops: FlopsModel,
        config: LearnerConfig,
        layout: Layout,
        rejected_folder: Path | None,
    ) -> None:
        """The weights of ``model`` without ``requires_grad`` are neither trained nor saved."""
        self.device = layout.device
        self._model = model
        self.weights = {name: weight for name, weight in model.weights.items() if weight.requires_grad}
        self._flops = flops
        self.config = config
        self._layout = layout
        self._skipped = SkippedSteps(config.max_skipped_steps, rejected_folder if dist.get_rank() == 0 else None)
        self._step = 0

    def train_only(self, weights: Mapping[str, DTensor]) -> None:
        """From the next phase on these are trained and saved; the others of the module stay as they are."""
        for name, weight in self._model.weights.items():
            weight.requires_grad_(name in weights)
        self.weights = dict(weights)

    def begin_phase(self, config: OptimizerConfig, total_steps: int) -> None:
        """Start from step 0 with a fresh optimizer."""
        self._optimizer_config = config
        self._total_steps = total_steps
        ratio = self.config.lora.plus_ratio if self.config.lora is not None else 1.0
        zero = {name: weight for name, weight in self.weights.items() if ratio != 1 and ".lora_B" in name}
        others = [weight for name, weight in self.weights.items() if name not in zero]
        self._optimizer = make_optimizer(config, others, zero.values(), ratio)
        self._step = 0

    def step(self, samples: Sequence[TrainingSample], columns: Columns, objective: Objective) -> dict[str, float]:
        """One optimizer step on the whole global batch ``samples``. Returns reduced metrics, ``loss`` among them."""
        shares: dict[str, list[Tensor]] = defaultdict(list)
        parts = self._share(samples)
        for number, members in enumerate(parts, 1):
            self._last_of_step(number == len(parts))
            loss, metrics = objective(self._packed(samples, members, columns))
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in metrics.items():
                shares[name].append(value)
        reduced = reduce_over_ranks(shares, self._layout)
        norm = global_grad_norm(self.weights.values()).item()
        rate = learning_rate(self._optimizer_config, self._step, self._total_steps)
        if self._skipped.admits(reduced["loss"], norm, self._step, samples):
            self._apply(norm, rate)
        self._optimizer.zero_grad()
        self._step += 1
        return {**reduced, "grad_norm": norm, "learning_rate": rate, "skipped_steps": float(self._skipped.skipped)}

    def _last_of_step(self, last: bool) -> None:
        """Where each rank holds whole weights, gather and reduce once a step and not once a micro-batch.

        Where they lie in shards that would cost the memory which sharding saves.
        """
        model, mesh = self._model, self._layout.mesh
        if mesh.size(mesh.ndim - 1) == 1 and isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            model.set_reshard_after_backward(last)
            model.set_is_last_backward(last)

    def _apply(self, norm: float, rate: float) -> None:
        if norm > self._optimizer_config.grad_clip:
            scale_gradients(self.weights.values(), self._optimizer_config.grad_clip / norm)
        set_rate(self._optimizer, rate)
        offloaded = self.config.offload == "optimizer"
        if offloaded:
            move_moments(self._optimizer, self.device)
        self._optimizer.step()
        if offloaded:
            move_moments(self._optimizer, HOST)

    def evaluate(
        self, model: nn.Module, samples: Sequence[TrainingSample], score: Callable[[PackedBatch], Tensor]
    ) -> list[FloatArray]:
        """``score`` of each policy token by ``model``, without gradient: ``[tokens]`` a sample, 0 off the mask."""
        starts = np.concatenate([[0], np.cumsum([len(sample) for sample in samples])])
        flat = torch.zeros(int(starts[-1]), dtype=torch.float64, device=self.device)
        with scoring(model):
            for members in self._share(samples):
                scores = score(self._packed(samples, members, {}))
                places = [np.arange(starts[i], starts[i + 1])[samples[i].policy_mask] for i in members]
                if places and self._layout.counts:
                    flat[torch.as_tensor(np.concatenate(places), device=self.device)] = scores.to(flat.dtype)
        dist.all_reduce(flat)
        return np.split(flat.cpu().numpy().astype(np.float32), starts[1:-1])

    def _packed(self, samples: Sequence[TrainingSample], members: MicroBatch, columns: Columns) -> PackedBatch:
        chosen = {name: [column[i] for i in members] for name, column in columns.items()}
        return pack_samples([samples[i] for i in members], self.device, chosen)

    def _share(self, samples: Sequence[TrainingSample]) -> tuple[MicroBatch, ...]:
        """This rank's micro-batches, as indices of samples."""
        lengths, costs = [len(sample) for sample in samples], [self._flops.cost(sample) for sample in samples]
        return pack(lengths, self.config.longest_sequence, self._layout.data_ranks, costs)[self._layout.data_rank]

    # -- checkpoints --

    def snapshot(self, progress: Mapping[str, Any]) -> checkpoint.Snapshot:
        """Trained weights, optimizer, schedule and random state, to be saved; ``progress`` is JSON-ready."""
        counts = {"step": self._step, "skipped_steps": self._skipped.skipped}
        return checkpoint.snapshot(self.weights, self._optimizer, {**counts, **progress})

    def load(self, folder: Path) -> None:
        """Continue where ``snapshot`` was called, on any number of ranks, in a phase that has just begun."""
        progress = checkpoint.read_progress(folder)
        self._step, self._skipped.skipped = progress["step"], progress["skipped_steps"]
        checkpoint.load(folder, self.weights, self._optimizer, progress["adam_steps"])


def parts_of(count: int, parts: int) -> list[list[int]]:
    """The rows 0 to ``count - 1`` in so many runs of nearly the same length, none of them empty."""
    return [rows.tolist() for rows in np.array_split(np.arange(count), min(parts, count))]
