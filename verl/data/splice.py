"""Continuations that nobody sampled, laid after a context: what is the log-prob of this answer after that search?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verl.data.samples import TrainingSample
from verl.trajectory import IntArray


def splice(context: IntArray | Sequence[int], continuation: IntArray | Sequence[int]) -> TrainingSample:
    """``context`` and then ``continuation``, whose tokens alone count, without credit: ``[context + continuation]``.

    Raises ValueError where either is empty: nothing would be asked, or nothing could predict it.
    """
    if not len(context) or not len(continuation):
        raise ValueError(f"{len(context)} tokens of context, {len(continuation)} of continuation: both need some")
    tokens = np.concatenate([context, continuation]).astype(np.int32)
    mask = np.arange(len(tokens)) >= len(context)
    nothing = np.zeros(len(tokens), np.float32)
    return TrainingSample(tokens, mask, nothing, nothing)


def mismatched(samples: Sequence[TrainingSample], longest: int) -> list[TrainingSample]:
    """Each sample's prompt with what follows the prompt of the next sample, for KTO's reference point.

    Policy tokens stay those of the next sample. Pairs above ``longest`` tokens are left out, and so is a sample that
    would meet itself or the same prompt.
    """
    pairs = []
    for here, there in zip(samples, [*samples[1:], *samples[:1]], strict=True):
        begin, end = int(here.policy_mask.argmax()), int(there.policy_mask.argmax())
        prompt = here.token_ids[:begin]
        same = np.array_equal(prompt, there.token_ids[:end]) and here.images == there.images
        if same or begin + len(there) - end > longest:
            continue
        tokens = np.concatenate([prompt, there.token_ids[end:]])
        mask = np.concatenate([np.zeros(begin, np.bool_), there.policy_mask[end:]])
        nothing = np.zeros(len(tokens), np.float32)
        pairs.append(TrainingSample(tokens, mask, nothing, nothing, here.images))
    return pairs
