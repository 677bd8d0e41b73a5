"""The learner's side of the canary: what it would say next, greedily, to a few fixed prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verl.data.batch import pack_samples
from verl.data.samples import TrainingSample
from verl.learner.learner import Learner
from verl.learner.model import scoring


def next_tokens(learner: Learner, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float, float]]:
    """``(token, log-prob, lead over the second in nats)`` of each prompt's likeliest next token. Collective."""
    samples = [_one_open_place(prompt) for prompt in prompts]
    batch = pack_samples(samples, learner.device)
    with scoring(learner.model):
        values, ids = learner.model(batch, 1.0, False, top=2)
    rows = zip(ids[:, 0].tolist(), values.tolist(), strict=True)
    return [(token, first, first - second) for token, (first, second) in rows]


def _one_open_place(prompt: Sequence[int]) -> TrainingSample:
    """The prompt and one place after it, whatever stands there: the model is asked for what comes before that place."""
    tokens = np.asarray([*prompt, 0], dtype=np.int32)
    mask = np.arange(len(tokens)) == len(prompt)
    zeros = np.zeros(len(tokens), dtype=np.float32)
    return TrainingSample(tokens, mask, zeros, zeros)
