"""A packed batch holds the samples' values at the right places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verl.data.batch import pack_samples
from verl.data.samples import TrainingSample


def sample(ids: list[int], mask: list[int], advantage: float) -> TrainingSample:
    chosen = np.array(mask, dtype=bool)
    return TrainingSample(
        token_ids=np.array(ids, dtype=np.int32),
        policy_mask=chosen,
        advantages=np.where(chosen, advantage, 0).astype(np.float32),
        rollout_logprobs=np.where(chosen, -0.5 * np.arange(len(ids)), 0).astype(np.float32),
    )


def test_sequences_are_laid_end_to_end_and_policy_tokens_gathered() -> None:
    first, second = sample([7, 8, 9], [0, 1, 1], 2.0), sample([4, 5, 6, 3], [0, 0, 1, 0], -1.0)
    batch = pack_samples([first, second], columns={"old": [np.arange(3.0), np.arange(4.0)]})
    assert batch.input_ids.tolist() == [7, 8, 9, 4, 5, 6, 3]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 3, 7]
    assert batch.lengths == (3, 4)
    assert batch.sequence_index.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert batch.policy_positions.tolist() == [1, 2, 5]
    assert batch.sequence.tolist() == [0, 0, 1]
    assert batch.targets.tolist() == [8, 9, 6]
    assert batch.advantages.tolist() == [2.0, 2.0, -1.0]
    assert batch.rollout_logprobs.tolist() == [-0.5, -1.0, -1.0]
    assert batch.columns["old"].tolist() == [1.0, 2.0, 2.0]
    assert batch.cu_seqlens.dtype == torch.int32


def test_no_samples_make_one_token_that_nothing_is_asked_of() -> None:
    batch = pack_samples([], columns={"old": []})
    assert batch.num_tokens == 1
    assert len(batch.policy_positions) == len(batch.columns["old"]) == 0


def test_first_token_cannot_be_a_policy_token() -> None:
    with pytest.raises(ValueError, match="first token"):
        pack_samples([sample([1, 2], [1, 1], 1.0)])
