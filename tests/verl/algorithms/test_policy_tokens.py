"""Policy tokens: spans, runs, shapes."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.tokens import PolicyTokens, policy_spans, run_mean, runs


def test_spans_end_at_observations_and_at_sequences() -> None:
    #                      p g g o g | p g | g g  (the last two: another sequence, adjacent)
    mask = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1, 1], dtype=torch.bool)
    sequence = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
    assert policy_spans(mask, sequence).tolist() == [0, 0, 1, 2, 3, 3]
    assert policy_spans(mask & False, sequence).tolist() == []


def test_runs_number_ids_in_order_of_appearance() -> None:
    index, lengths = runs(torch.tensor([9, 9, 4, 7, 7, 7]))
    assert index.tolist() == [0, 0, 1, 2, 2, 2]
    assert lengths.tolist() == [2, 1, 3]
    assert run_mean(torch.tensor([1.0, 3.0, 5.0, 0.0, 0.0, 3.0]), index, lengths).tolist() == [2.0, 5.0, 1.0]


def test_a_tensor_of_another_length_is_named() -> None:
    good, bad = torch.zeros(3), torch.zeros(4)
    with pytest.raises(ValueError, match="advantages has shape"):
        PolicyTokens(good, good, bad, torch.zeros(3, dtype=torch.int64))
