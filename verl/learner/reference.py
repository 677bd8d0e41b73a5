"""The reference model: the policy as it was when the phase began. ``Phase.reference`` says how it is had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from verl.learner.adapter import adapter_off
from verl.learner.config import LearnerConfig
from verl.learner.distributed import Layout
from verl.learner.export import copy_policy
from verl.learner.loading import load_reference
from verl.learner.model import PolicyModel
from verl.learner.phase import Phase, ReferenceKind


class Reference:
    """Makes, keeps and drops the reference of a policy."""

    def __init__(self, policy: PolicyModel, model_path: Path, config: LearnerConfig, layout: Layout) -> None:
        self._policy = policy
        self._model_path = model_path
        self._config = config
        self._layout = layout
        self._kind: ReferenceKind = "none"
        self._copy: PolicyModel | None = None
        self._adapters: dict[str, Tensor] = {}

    def prepare(self, phase: Phase) -> None:
        """Hold what ``phase`` needs and free the rest. A copy is that of the model's folder. Collective."""
        self._kind, self._copy, self._adapters = phase.reference, None, {}
        if self._kind == "copy":
            self._copy = load_reference(self._model_path, self._config, self._layout)
        elif self._kind == "adapters":
            self._adapters = {name: weight.detach().clone() for name, weight in self._live_adapters().items()}

    def take(self, phase: Phase) -> None:
        """``prepare``; then, where earlier phases have moved it, the policy as it is now is put in. Collective."""
        self.prepare(phase)
        if self._copy is not None and phase.moved:
            copy_policy(self._policy, self._copy.weights)

    def weights(self) -> dict[str, Tensor]:
        """What the reference holds of its own, sharded, by name."""
        return dict(self._adapters if self._copy is None else self._copy.weights)

    @contextmanager
    def active(self) -> Iterator[PolicyModel]:
        """The model to score with, inside. Raises ValueError if the phase has no reference."""
        match self._kind:
            case "none":
                raise ValueError("this phase has no reference model: its loss does not need one")
            case "off":
                with adapter_off(self._policy.lm):
                    yield self._policy
            case "adapters":
                self._swap_adapters()
                try:
                    yield self._policy
                finally:
                    self._swap_adapters()
            case "copy":
                assert self._copy is not None
                yield self._copy

    @torch.no_grad()
    def _swap_adapters(self) -> None:
        for name, weight in self._live_adapters().items():
            there = self._adapters[name]
            assert isinstance(there, DTensor)
            now = weight.to_local().clone()
            weight.to_local().copy_(there.to_local())
            there.to_local().copy_(now)

    def _live_adapters(self) -> dict[str, DTensor]:
        return {name: weight for name, weight in self._policy.weights.items() if ".lora_" in name}
