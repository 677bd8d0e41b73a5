"""The learner: one rank of a group that turns training samples into optimizer steps of the policy.

Every rank calls every method with the same arguments, and takes its own share. Losses, gradients and metrics are sums
of shares of the global batch, so they depend neither on the number of ranks nor on how samples are packed. What to
train on, when to stop and where to save is the caller's business. What it is doing is one value, ``phase``; how a batch
becomes steps is ``training``, what is compared with is ``scoring`` and ``reference``, what leaves is ``export``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from verl.algorithms.config import KlEstimator
from verl.algorithms.marks import final_metrics
from verl.config.build import build, to_dict
from verl.data.samples import TrainingSample
from verl.learner import checkpoint, export
from verl.learner.adapter import adapters, saved_name
from verl.learner.background import BackgroundWriter
from verl.learner.config import LearnerConfig
from verl.learner.critic import Critic
from verl.learner.distributed import card_room, make_layout
from verl.learner.engine import Engine
from verl.learner.flops import FlopsModel
from verl.learner.loading import load_policy, recompute_layers
from verl.learner.memory import layers_to_recompute
from verl.learner.parts import VISION, decoder_of
from verl.learner.phase import Phase, Weights
from verl.learner.reference import Reference
from verl.learner.scoring import Scorer
from verl.learner.training import PolicyTraining
from verl.model_shape import read_shape
from verl.trajectory import FloatArray

_POLICY, _CRITIC, _STILL = "policy", "critic", "still"


class Learner:
    """Holds the sharded policy and what its phase needs. Needs ``init_process`` to have been called."""

    def __init__(
        self, model_path: str | Path, config: LearnerConfig, *, seed: int, rejected_folder: Path | None = None
    ) -> None:
        """Load ``model_path`` (a Hugging Face folder). Batches of skipped steps are kept in ``rejected_folder``."""
        torch.manual_seed(seed)
        self.config = config
        self._model_path = Path(model_path)
        self._layout = layout = make_layout(config)
        self.model = load_policy(self._model_path, config, layout)
        self._flops = FlopsModel.of(self.model.lm)
        self._engine = Engine(self.model, self._flops, config, layout, rejected_folder)
        self._reference = Reference(self.model, self._model_path, config, layout)
        self._scorer = Scorer(self.model, self._reference, self._engine)
        self._training = PolicyTraining(self.model, self._engine, self._scorer)
        self._make_critic = partial(Critic, self._model_path, config, layout, rejected_folder)
        self._critic: Critic | None = None
        self._writer = BackgroundWriter()
        self._phase: Phase | None = None

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self._engine.device

    @property
    def phase(self) -> Phase:
        """What it is doing. Raises ValueError before the first phase."""
        if self._phase is None:
            raise ValueError("begin_phase comes before training and checkpoints")
        return self._phase

    # -- phases --

    def begin_phase(self, phase: Phase) -> None:
        """Start ``phase`` with a fresh optimizer; the weights stay as they are, and are its reference. Collective."""
        phase = self._enter(phase.after(self._phase, lora=self.config.lora is not None))
        self._reference.take(phase)
        self._engine.begin_phase(phase.optimizer, phase.optimizer_steps)
        if self._critic is not None:
            self._critic.begin_phase(self.model, phase)

    def _enter(self, phase: Phase) -> Phase:
        self._phase = phase
        self._scorer.forget()
        self._engine.train_only(self._part(phase.trained))
        self._critic = self._make_critic() if phase.has_critic else None
        layers = self._layers_to_recompute(phase)
        recompute_layers(self.model.lm, layers)
        if self._critic is not None:
            self._critic.recompute_layers(layers)
        return phase

    def _layers_to_recompute(self, phase: Phase) -> int:
        """As told; where nobody has chosen, the fewest that the ranks' cards need in this phase. Collective."""
        if self.config.gradient_checkpointing != "auto":
            return self.config.recomputed(len(decoder_of(self.model.lm).layers))
        if (room := card_room(self._layout)) is None:
            return 0
        shape = read_shape(str(self._model_path))
        return layers_to_recompute(self.config, shape, [phase], self._layout.mesh.size(), room)

    def _part(self, part: Weights) -> dict[str, DTensor]:
        """The policy's weights of that part; what sees pictures is in none."""
        weights = self.model.weights.items()
        return {
            name: weight
            for name, weight in weights
            if not name.startswith(VISION) and (part == "all" or (saved_name(name) is None) == (part == "adapters"))
        }

    # -- training and scoring --

    def update(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> dict[str, float]:
        """Train on a batch, in as many optimizer steps as the phase says. Returns metrics of the global batch.

        ``temperature`` is the one that was sampled with. ``logprob_diff_max`` and ``_mean`` compare the log-probs of
        rollout and trainer before the first step, where the samples carry any. Raises ValueError for a batch without
        policy tokens, UserError for a sample above the token cap, NonFiniteError past the bound of skipped steps.
        """
        phase = self.phase
        samples = [sample for sample in samples if sample.num_policy_tokens]
        if not samples:
            raise ValueError("no sample has a policy token: nothing to train on")
        extra: dict[str, float] = {}
        if self._critic is not None and phase.advantage is not None:
            samples, targets, explained = self._critic.advantages(samples, phase.advantage)
            extra = {**self._critic.update(samples, targets), "critic_explained_variance": explained}
        return {**final_metrics(self._training.update(samples, phase, temperature)), **extra}

    def logprobs(
        self, samples: Sequence[TrainingSample], temperature: float = 1.0, *, reference: bool = False
    ) -> list[FloatArray]:
        """Log-prob of each policy token under the current weights, ``[tokens]`` a sample, 0 where the mask is False.

        ``reference``: under the reference model of the phase instead; ValueError where it has none. Samples may be
        spliced (``verl.data.splice``): then these are the log-probs of a given continuation.
        """
        return self._scorer.logprobs(samples, temperature, reference=reference)

    def reference_kl(
        self, samples: Sequence[TrainingSample], temperature: float, estimator: KlEstimator
    ) -> list[FloatArray]:
        """KL(policy || reference) of each policy token by ``estimator``: ``[tokens]`` a sample, 0 off the mask."""
        return self._scorer.kl(samples, temperature, estimator)

    def training_flops(self, samples: Sequence[TrainingSample]) -> float:
        """Formula FLOPs of forward and backward of ``samples`` on all ranks together, recomputation not counted."""
        return sum(map(self._flops.cost, samples))

    # -- weights --

    def named_weights(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
        """Stream every whole weight by Hugging Face name, cast to ``dtype``; a tied LM head is left out. Collective.

        With LoRA, the weights have the adapter merged into them. A tensor may share memory with the model: copy what
        has to outlive the next step.
        """
        return export.gathered(self.model, dtype)

    @property
    def sends_adapters(self) -> bool:
        """Whether engines are to have ``named_base`` once and ``named_adapters`` after each step, in this phase.

        Before the first phase they have the whole: a supervised run is measured before it learns.
        """
        lora, phase = self.config.lora, self._phase
        return lora is not None and lora.sync == "adapter" and phase is not None and phase.trained == "adapters"

    @property
    def adapter_scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by; 1 without LoRA."""
        return 1.0 if self.config.lora is None else self.config.lora.scale

    def named_base(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """``named_weights`` without the adapters. Collective."""
        return export.gathered(self.model, dtype, merge=False)

    def named_adapters(self) -> Iterator[tuple[str, Tensor]]:
        """Stream the adapters' matrices, whole, in full precision, as ``verl.sync.file`` reads them. Collective."""
        return adapters(self.model.lm)

    def weights_hash(self) -> str:
        """Hex digest of all weights in full precision, on rank 0. Collective; reads every byte of the model."""
        return export.hash_weights(self.named_weights(getattr(torch, self.config.parameter_dtype)))

    def save_hf(self, folder: str | Path, dtype: torch.dtype | None = None, *, background: bool = False) -> None:
        """Export as a Hugging Face folder with the tokenizer of the model that was loaded. Collective.

        In the precision that is computed in unless told. ``background`` is that of ``save_checkpoint``; rank 0 then
        holds a copy of the whole model until it is written.
        """
        dtype = dtype or getattr(torch, self.config.compute_dtype)
        state = export.collected(self.named_weights(dtype), copy=background)
        job = partial(export.write_hf, Path(folder), self._model_path, state, dtype)
        self._writer.run(job, background=background)

    # -- checkpoints --

    def save_checkpoint(
        self, folder: str | Path, *, background: bool = False, previous: str | Path | None = None
    ) -> None:
        """Write weights, optimizer, schedule, random state, phase; ``folder`` appears when whole. Collective.

        With ``background`` only a copy to host memory is made now; ``wait_saved`` says when it is written. What an
        earlier save left to write is waited for first, so that no more than one copy exists. What rests in this phase
        (reference, weights under adapters) is linked to where it lies in ``previous``, a checkpoint of the same phase.
        """
        self.wait_saved()
        progress = {"phase": to_dict(self.phase)}
        parts = {_POLICY: self._engine.snapshot(progress)}
        if self._critic is not None:
            parts[_CRITIC] = self._critic.snapshot()
        links: dict[str, Path] = {}
        if still := self._still():
            if previous is not None and checkpoint.same_phase(Path(previous) / _STILL, progress):
                links[_STILL] = Path(previous) / _STILL
            else:
                parts[_STILL] = checkpoint.Snapshot(still, progress)
        if background:
            parts = {name: part.on_host() for name, part in parts.items()}
        self._writer.run(partial(checkpoint.write, Path(folder), parts, links), background=background)

    @property
    def saving(self) -> bool:
        """Whether this rank still writes in the background."""
        return self._writer.busy

    def wait_saved(self) -> None:
        """Return when all that was saved in the background is written. Raises what writing raised. Every rank calls."""
        self._writer.wait()

    def load_checkpoint(self, folder: str | Path, batches: int | None = None) -> None:
        """Continue exactly where ``save_checkpoint`` was called, on any number of ranks. Collective.

        ``batches``: the phase is that long from now on, and its schedule with it.
        """
        folder = Path(folder)
        phase: Phase = build(Phase, checkpoint.read_progress(folder / _POLICY)["phase"])
        phase = self._enter(replace(phase, batches=batches or phase.batches))
        self._reference.prepare(phase)
        self._engine.begin_phase(phase.optimizer, phase.optimizer_steps)
        self._engine.load(folder / _POLICY)
        if self._critic is not None:
            self._critic.load(folder / _CRITIC, phase)
        if still := self._still():
            checkpoint.load_tensors(folder / _STILL, still)

    def _still(self) -> dict[str, Tensor]:
        """What this phase does not train and no file of the model has."""
        phase = self.phase
        rests = self._part(phase.saves_untrained) if phase.saves_untrained else {}
        still = {f"rests.{name}": weight.detach() for name, weight in rests.items()}
        if phase.saves_reference:
            still |= {f"reference.{name}": weight.detach() for name, weight in self._reference.weights().items()}
        return still
