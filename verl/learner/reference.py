"""The reference model of a KL term: the policy as it was when the phase began.

With LoRA it is the same model with the adapter switched off, and costs nothing; otherwise it is a frozen, sharded copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from verl.learner.adapter import adapter_off
from verl.learner.config import LearnerConfig
from verl.learner.distributed import Layout
from verl.learner.loading import load_policy
from verl.learner.model import PolicyModel


class Reference:
    """Makes, keeps and drops the reference of a policy."""

    def __init__(self, policy: PolicyModel, model_path: Path, config: LearnerConfig, layout: Layout) -> None:
        self._policy = policy
        self._model_path = model_path
        self._config = config
        self._layout = layout
        self._copy: PolicyModel | None = None

    def take(self) -> None:
        """From now on the reference is the policy as it is now (with LoRA: the policy without its adapter)."""
        if self._config.lora is not None:
            return
        if self._copy is None:
            self._copy = load_policy(self._model_path, self._config, self._layout)
            self._copy.requires_grad_(False)
        with torch.no_grad():
            for name, weight in self._copy.weights.items():
                weight.to_local().copy_(self._policy.weights[name].to_local())

    def drop(self) -> None:
        """Free the copy."""
        self._copy = None

    def weights(self) -> Mapping[str, DTensor]:
        """What a checkpoint must hold of it: nothing unless there is a copy."""
        return {} if self._copy is None else self._copy.weights

    @contextmanager
    def active(self, reference: bool) -> Iterator[PolicyModel]:
        """The model to score with: the policy, or its reference. Raises ValueError if the phase has none."""
        if not reference:
            yield self._policy
        elif self._copy is not None:
            yield self._copy
        elif self._config.lora is not None:
            with adapter_off(self._policy.lm):
                yield self._policy
        else:
            raise ValueError("this phase has no reference model: its loss does not need one")
