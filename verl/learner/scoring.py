"""Log-probs under the policy and its reference, without gradient: what losses, KL in the reward and metrics compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from verl.algorithms.config import KlEstimator
from verl.algorithms.kl import kl_estimate
from verl.data.samples import TrainingSample
from verl.learner.engine import Engine
from verl.learner.model import PolicyModel
from verl.learner.reference import Reference
from verl.trajectory import FloatArray

_Key = tuple[bool, float, bytes, tuple[str, ...]]


class Scorer:
    """Scores samples; what KL in the reward has scored is not scored again by the update that follows."""

    def __init__(self, policy: PolicyModel, reference: Reference, engine: Engine) -> None:
        self._policy = policy
        self._reference = reference
        self._engine = engine
        self._known: dict[_Key, FloatArray] = {}

    def forget(self) -> None:
        """The weights have moved, or are about to."""
        self._known = {}

    def logprobs(
        self, samples: Sequence[TrainingSample], temperature: float, *, reference: bool = False
    ) -> list[FloatArray]:
        """Log-prob of each policy token, ``[tokens]`` a sample, 0 where the mask is False. Collective."""
        keys = [_key(sample, temperature, reference) for sample in samples]
        if all(key in self._known for key in keys):
            return [self._known[key] for key in keys]
        if not reference:
            return self._scored(self._policy, samples, temperature)
        with self._reference.active() as model:
            return self._scored(model, samples, temperature)

    def kl(self, samples: Sequence[TrainingSample], temperature: float, estimator: KlEstimator) -> list[FloatArray]:
        """KL(policy || reference) of each policy token by ``estimator``: ``[tokens]`` a sample, 0 off the mask."""
        columns = []
        for reference in (False, True):
            scores = self.logprobs(samples, temperature, reference=reference)
            columns.append(scores)
            keys = (_key(sample, temperature, reference) for sample in samples)
            self._known.update(zip(keys, scores, strict=True))
        pairs = zip(*columns, strict=True)
        return [kl_estimate(torch.as_tensor(p), torch.as_tensor(r), estimator).numpy() for p, r in pairs]

    def _scored(self, model: PolicyModel, samples: Sequence[TrainingSample], temperature: float) -> list[FloatArray]:
        return self._engine.evaluate(model, samples, lambda batch: model(batch, temperature, False)[0])


def _key(sample: TrainingSample, temperature: float, reference: bool) -> _Key:
    content = sample.token_ids.tobytes() + sample.policy_mask.tobytes()
    return reference, temperature, hashlib.blake2b(content, digest_size=16).digest(), sample.images
