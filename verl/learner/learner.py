"""The learner: one rank of a group that turns training samples into optimizer steps of the policy.

Every rank calls every method with the same arguments, and takes its own share. Losses, gradients and metrics are sums
of shares of the global batch, so they depend neither on the number of ranks nor on how samples are packed. What to
train on, when to stop and where to save is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from verl.algorithms.config import AdvantageConfig, KlEstimator, LossConfig
from verl.algorithms.kl import kl_estimate
from verl.algorithms.metrics import summarize
from verl.algorithms.objective import policy_objective
from verl.algorithms.sequence_losses import kto_kl_point
from verl.algorithms.tokens import PolicyTokens, Totals, policy_spans
from verl.config.build import build
from verl.data.batch import PackedBatch
from verl.data.samples import TrainingSample
from verl.learner import checkpoint, export
from verl.learner.adapter import adapters, saved_name
from verl.learner.background import BackgroundWriter
from verl.learner.config import LearnerConfig, OptimizerConfig
from verl.learner.critic import Critic
from verl.learner.distributed import make_layout
from verl.learner.engine import Columns, Engine
from verl.learner.flops import FlopsModel
from verl.learner.loading import load_policy
from verl.learner.metrics import combine_steps, logprob_gap
from verl.learner.reference import Reference
from verl.trajectory import FloatArray

_POLICY, _CRITIC = "policy", "critic"


class Learner:
    """Holds the sharded policy and the optimizer of the current phase. Needs ``init_process`` to have been called."""

    def __init__(
        self, model_path: str | Path, config: LearnerConfig, *, seed: int, rejected_folder: Path | None = None
    ) -> None:
        """Load ``model_path`` (a Hugging Face folder). Batches of skipped steps are kept in ``rejected_folder``."""
        torch.manual_seed(seed)
        self.config = config
        self._model_path = Path(model_path)
        layout = make_layout(config)
        self.model = load_policy(self._model_path, config, layout)
        self._flops = FlopsModel.of(self.model.lm)
        self._engine = Engine(self.model.weights, self._flops, config, layout, rejected_folder)
        self._reference = Reference(self.model, self._model_path, config, layout)
        self._loss: LossConfig | None = None
        self._advantage: AdvantageConfig | None = None
        self._has_reference = self._all_weights = self._base_moved = False
        self._base = {name: weight for name, weight in self.model.weights.items() if saved_name(name)}
        self._adapters = {name: weight for name, weight in self.model.weights.items() if not saved_name(name)}
        self._writer = BackgroundWriter()
        self._make_critic = partial(Critic, self._model_path, config, layout, rejected_folder)
        self._critic: Critic | None = None

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self._engine.device

    # -- training --

    def begin_phase(
        self,
        optimizer: OptimizerConfig,
        loss: LossConfig,
        total_steps: int,
        advantage: AdvantageConfig | None = None,
        *,
        keep_reference: bool = False,
        all_weights: bool = False,
    ) -> None:
        """Start a phase of ``total_steps`` optimizer steps with a fresh optimizer; the weights stay as they are.

        Where the loss needs a reference model, or with ``keep_reference``, that is the policy as it is now. An
        ``advantage`` that needs a critic gets one, and ``update`` then takes rewards: the samples' ``advantages`` are
        the rewards of their tokens. With LoRA, ``all_weights`` trains the model under the adapters instead of them.
        """
        self._set_phase(loss, advantage, keep_reference or loss.needs_reference, all_weights)
        self._engine.begin_phase(optimizer, total_steps)
        if self._critic is not None:
            self._critic.take_decoder(self.model)
            self._critic.begin_phase(total_steps)

    def _set_phase(
        self, loss: LossConfig, advantage: AdvantageConfig | None, has_reference: bool, all_weights: bool
    ) -> None:
        self._loss, self._advantage = loss, advantage
        self._has_reference, self._all_weights = has_reference, all_weights
        if self.config.lora is not None:
            self._base_moved |= all_weights
            self._engine.train_only(self._base if all_weights else self._adapters)
        if has_reference:
            self._reference.take()
        else:
            self._reference.drop()
        needs_critic = advantage is not None and advantage.needs_critic
        self._critic = self._make_critic() if needs_critic else None

    def update(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> dict[str, float]:
        """Train on a batch: ``updates_per_batch`` optimizer steps. Returns metrics of the global batch.

        ``temperature`` is the one that was sampled with. ``logprob_diff_max`` and ``_mean`` compare the log-probs of
        rollout and trainer before the first step, where the samples carry any. Raises ValueError for a batch without
        policy tokens, UserError for a sample above the token cap, NonFiniteError past the bound of skipped steps.
        """
        loss = self._current_loss()
        samples = [sample for sample in samples if sample.num_policy_tokens]
        if not samples:
            raise ValueError("no sample has a policy token: nothing to train on")
        count = min(self.config.updates_per_batch, len(samples))
        extra: dict[str, float] = {}
        if self._critic is not None and self._advantage is not None:
            samples, targets, explained = self._critic.advantages(samples, self._advantage)
            extra = {**self._critic.update(samples, targets), "critic_explained_variance": explained}
        columns = {"old": self.logprobs(samples, temperature)} if count > 1 or loss.name == "kto" else {}
        if loss.needs_reference:
            columns["reference"] = self.logprobs(samples, temperature, reference=True)
        recorded = any(sample.rollout_logprobs.any() for sample in samples)
        steps = []
        for rows in np.array_split(np.arange(len(samples)), count):
            chosen = {name: [column[i] for i in rows] for name, column in columns.items()}
            steps.append(self._take_step([samples[i] for i in rows], chosen, temperature, recorded))
        return {**summarize(combine_steps(steps)), **extra}

    def logprobs(
        self, samples: Sequence[TrainingSample], temperature: float = 1.0, *, reference: bool = False
    ) -> list[FloatArray]:
        """Log-prob of each policy token under the current weights, ``[tokens]`` a sample, 0 where the mask is False.

        ``reference``: under the reference model of the phase instead.
        """
        with self._reference.active(reference) as model:
            return self._engine.evaluate(model, samples, lambda batch: model(batch, temperature, False)[0])

    def reference_kl(
        self, samples: Sequence[TrainingSample], temperature: float, estimator: KlEstimator
    ) -> list[FloatArray]:
        """KL(policy || reference) of each policy token by ``estimator``: ``[tokens]`` a sample, 0 off the mask."""
        policy, reference = (self.logprobs(samples, temperature, reference=flag) for flag in (False, True))
        pairs = zip(policy, reference, strict=True)
        return [kl_estimate(torch.as_tensor(p), torch.as_tensor(r), estimator).numpy() for p, r in pairs]

    def training_flops(self, samples: Sequence[TrainingSample]) -> float:
        """Formula FLOPs of forward and backward of ``samples`` on all ranks together, recomputation not counted."""
        return sum(map(self._flops.cost, samples))

    def _take_step(
        self, samples: Sequence[TrainingSample], columns: Columns, temperature: float, recorded: bool
    ) -> dict[str, float]:
        """One optimizer step on ``samples``, a whole global (mini-)batch.

        ``recorded``: whether the samples of the batch carry the rollout's log-probs.
        """
        loss = self._current_loss()
        totals = Totals.count([sample.num_policy_tokens for sample in samples])
        if loss.name == "kto":
            totals = replace(totals, kl_point=_kl_point(samples, columns))

        def objective(batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
            tokens = self._policy_tokens(batch, loss, temperature, recorded)
            share = policy_objective(tokens, totals, loss)
            if tokens.rollout_logprobs is None:
                return share
            gap = logprob_gap(tokens.old_logprobs, tokens.rollout_logprobs, totals.policy_tokens)
            return share.loss, {**share.metrics, **gap}

        metrics = self._engine.step(samples, columns, objective)
        return {**metrics, "num_policy_tokens": float(totals.policy_tokens)}

    def _policy_tokens(self, batch: PackedBatch, loss: LossConfig, temperature: float, recorded: bool) -> PolicyTokens:
        logprobs, entropy = self.model(batch, temperature, loss.entropy_coefficient > 0)
        columns = {name: column.to(logprobs.dtype) for name, column in batch.columns.items()}
        return PolicyTokens(
            logprobs=logprobs,
            old_logprobs=columns.get("old", logprobs.detach()),
            advantages=batch.advantages.to(logprobs.dtype),
            sequence=batch.sequence,
            rollout_logprobs=batch.rollout_logprobs.to(logprobs.dtype) if recorded else None,
            reference_logprobs=columns.get("reference"),
            entropy=entropy,
            span=policy_spans(batch.policy_mask, batch.sequence_index) if loss.guard.coefficient > 0 else None,
        )

    def _current_loss(self) -> LossConfig:
        if self._loss is None:
            raise ValueError("begin_phase comes before training and checkpoints")
        return self._loss

    # -- weights --

    def named_weights(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
        """Stream every whole weight by Hugging Face name, cast to ``dtype``; a tied LM head is left out. Collective.

        With LoRA, the weights have the adapter merged into them. A tensor may share memory with the model: copy what
        has to outlive the next step.
        """
        return export.gathered(self.model, dtype)

    @property
    def sends_adapters(self) -> bool:
        """Whether engines are to have ``named_base`` once and ``named_adapters`` after each step, in this phase."""
        lora = self.config.lora
        return lora is not None and lora.sync == "adapter" and not self._all_weights

    @property
    def adapter_scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by; 1 without LoRA."""
        return 1.0 if self.config.lora is None else self.config.lora.scale

    def named_base(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """``named_weights`` without the adapters. Collective."""
        return export.gathered(self.model, dtype, merge=False)

    def named_adapters(self) -> Iterator[tuple[str, Tensor]]:
        """Stream the adapters' matrices, whole, in full precision, as ``verl.sync.adapters`` reads them. Collective."""
        return adapters(self.model.lm)

    def weights_hash(self) -> str:
        """Hex digest of all weights in full precision. Collective; the same on every rank."""
        return export.hash_weights(self.named_weights(getattr(torch, self.config.parameter_dtype)))

    def save_hf(self, folder: str | Path, dtype: torch.dtype = torch.float32, *, background: bool = False) -> None:
        """Export as a Hugging Face folder with the tokenizer of the model that was loaded. Collective.

        ``background`` is that of ``save_checkpoint``; rank 0 then holds a copy of the whole model until it is written.
        """
        state = export.collected(self.named_weights(dtype), copy=background)
        if background:
            self._writer.submit(lambda group: export.write_hf(Path(folder), self._model_path, state, dtype, group))
        else:
            export.write_hf(Path(folder), self._model_path, state, dtype)

    # -- checkpoints --

    def save_checkpoint(self, folder: str | Path, *, background: bool = False) -> None:
        """Write weights, optimizer, schedule, random state, phase; ``folder`` appears when whole. Collective.

        With ``background`` only a copy to host memory is made now; ``wait_saved`` says when it is written. What an
        earlier save left to write is waited for first, so that no more than one copy exists.
        """
        self.wait_saved()
        phase = {
            "loss": asdict(self._current_loss()),
            "advantage": None if self._advantage is None else asdict(self._advantage),
            "has_reference": self._has_reference,
            "all_weights": self._all_weights,
            "base_moved": self._base_moved,
        }
        parts = {_POLICY: self._engine.snapshot(phase, self._frozen())}
        if self._critic is not None:
            parts[_CRITIC] = self._critic.snapshot()
        if not background:
            checkpoint.write(Path(folder), parts)
            return
        copies = {name: part.on_host() for name, part in parts.items()}
        self._writer.submit(lambda group: checkpoint.write(Path(folder), copies, group))

    @property
    def saving(self) -> bool:
        """Whether this rank still writes in the background."""
        return self._writer.busy

    def wait_saved(self) -> None:
        """Return when all that was saved in the background is written. Raises what writing raised. Every rank calls."""
        self._writer.wait()

    def load_checkpoint(self, folder: str | Path) -> None:
        """Continue exactly where ``save_checkpoint`` was called, on any number of ranks. Collective."""
        folder = Path(folder)
        phase = self._engine.read(folder / _POLICY)
        advantage = None if phase["advantage"] is None else build(AdvantageConfig, phase["advantage"])
        self._base_moved = phase["base_moved"]
        self._set_phase(build(LossConfig, phase["loss"]), advantage, phase["has_reference"], phase["all_weights"])
        self._engine.load(folder / _POLICY, self._frozen())
        if self._critic is not None:
            self._critic.load(folder / _CRITIC)

    def _frozen(self) -> dict[str, DTensor]:
        """Weights that this phase does not train and that no file of the model has: those of a reference, or those
        under adapters that an earlier phase has moved."""
        base = self._base if self._base_moved and not self._all_weights else {}
        return {**self._reference.weights(), **base}


def _kl_point(samples: Sequence[TrainingSample], columns: Columns) -> float:
    """KTO's reference point of a step, from the log-probs at the start of its batch."""
    masks = [sample.policy_mask for sample in samples]
    old, reference = (
        torch.as_tensor(np.concatenate([row[mask] for row, mask in zip(columns[name], masks, strict=True)]))
        for name in ("old", "reference")
    )
    sequence = torch.as_tensor(np.repeat(np.arange(len(samples)), [int(mask.sum()) for mask in masks]))
    return kto_kl_point(old, reference, sequence)
