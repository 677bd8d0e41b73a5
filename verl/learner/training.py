"""From a batch to optimizer steps of the policy: which columns a loss reads, and one step on each part of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from verl.algorithms.config import LossConfig
from verl.algorithms.objective import policy_objective
from verl.algorithms.sequence_losses import kto_kl_point
from verl.algorithms.tokens import PolicyTokens, Totals, policy_spans
from verl.data.batch import PackedBatch
from verl.data.samples import TrainingSample
from verl.data.splice import mismatched
from verl.learner.engine import Columns, Engine, parts_of
from verl.learner.metrics import combine_steps, logprob_gap
from verl.learner.model import PolicyModel
from verl.learner.phase import Phase
from verl.learner.scoring import Scorer
from verl.trajectory import FloatArray


class PolicyTraining:
    """The policy's half of an update."""

    def __init__(self, model: PolicyModel, engine: Engine, scorer: Scorer) -> None:
        self._model = model
        self._engine = engine
        self._scorer = scorer

    def update(self, samples: Sequence[TrainingSample], phase: Phase, temperature: float) -> dict[str, float]:
        """As many steps as the phase says, each on a part of the batch. Returns metrics of the global batch."""
        loss = phase.loss
        recorded = any(sample.rollout_logprobs.any() for sample in samples)
        parts = parts_of(len(samples), phase.updates_per_batch)
        columns: dict[str, list[FloatArray]] = {}
        # With one step the old log-probs are the current ones; a recorded trace has no ratio at all.
        if loss.name == "kto" or (len(parts) > 1 and loss.name != "weighted_nll"):
            columns["old"] = self._scorer.logprobs(samples, temperature)
        if loss.needs_reference:
            columns["reference"] = self._scorer.logprobs(samples, temperature, reference=True)
        points = [
            self._kl_point([samples[i] for i in rows], columns, rows, temperature, recorded, loss) for rows in parts
        ]
        self._scorer.forget()
        steps = []
        for rows, point in zip(parts, points, strict=True):
            chosen = {name: [column[i] for i in rows] for name, column in columns.items()}
            steps.append(self._take_step([samples[i] for i in rows], chosen, loss, temperature, recorded, point))
        return combine_steps(steps)

    def _kl_point(
        self,
        samples: Sequence[TrainingSample],
        columns: Columns,
        rows: Sequence[int],
        temperature: float,
        sampled: bool,
        loss: LossConfig,
    ) -> float:
        """KTO's reference point of a step, from the log-probs at the start of its batch; 0 for other losses.

        Answers that the policy sampled speak for themselves; recorded ones are scored after one another's prompts.
        """
        if loss.name != "kto":
            return 0.0
        pairs = [[columns[name][i] for i in rows] for name in ("old", "reference")]
        if not sampled:
            samples = mismatched(samples, self._engine.config.longest_sequence)
            pairs = [self._scorer.logprobs(samples, temperature, reference=flag) for flag in (False, True)]
        if not samples:
            return 0.0
        masks = [sample.policy_mask for sample in samples]
        old, reference = (
            torch.as_tensor(np.concatenate([row[mask] for row, mask in zip(column, masks, strict=True)]))
            for column in pairs
        )
        sequence = torch.as_tensor(np.repeat(np.arange(len(samples)), [int(mask.sum()) for mask in masks]))
        return kto_kl_point(old, reference, sequence)

    def _take_step(
        self,
        samples: Sequence[TrainingSample],
        columns: Columns,
        loss: LossConfig,
        temperature: float,
        recorded: bool,
        kl_point: float,
    ) -> dict[str, float]:
        """One optimizer step on ``samples``, a whole global (mini-)batch.

        ``recorded``: whether the samples of the batch carry the rollout's log-probs.
        """
        totals = replace(Totals.count([sample.num_policy_tokens for sample in samples]), kl_point=kl_point)

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
        logprobs, entropy = self._model(batch, temperature, loss.entropy_coefficient > 0)
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
