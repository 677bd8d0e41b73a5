"""Packed attention equals attention sequence by sequence, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from verl.learner.attention import AttentionLayout, group_lengths, packed_attention


def one_by_one(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Textbook causal attention of each sequence, ``[1, tokens, heads, dim]``."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    outs = []
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        scores = q[0, :, part] @ k[0, :, part].transpose(1, 2) / q.shape[-1] ** 0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        outs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[0, :, part])
        start += length
    return torch.cat(outs, dim=1).transpose(0, 1)[None]


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [1, 30, 2, 29, 7, 7, 1], list(range(1, 20))])
def test_equals_attention_of_each_sequence_alone(lengths: list[int]) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    shapes = [(1, heads, tokens, 8) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    q, k, v = inputs
    layout = AttentionLayout(torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32), tuple(lengths))
    out, _ = packed_attention(nn.Module(), q, k, v, None, layout=layout, scaling=8**-0.5)
    expected = one_by_one(q, k, v, lengths)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    pull = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(o, inputs, pull) for o in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60))
def test_groups_hold_each_sequence_once_and_bound_their_padding(lengths: list[int]) -> None:
    groups = group_lengths(lengths)
    assert sorted(index for members in groups for index in members) == list(range(len(lengths)))
    for members in groups:
        widest = max(lengths[i] for i in members)
        assert all(widest**2 - lengths[i] ** 2 <= 192**2 for i in members), "a call of its own would be cheaper"


@pytest.mark.parametrize("option", [{"softcap": 50.0}, {"dropout": 0.1}])
def test_what_is_not_computed_is_refused(option: dict[str, Any]) -> None:
    q = torch.zeros(1, 1, 3, 4)
    layout = AttentionLayout(torch.tensor([0, 3], dtype=torch.int32), (3,))
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        packed_attention(nn.Module(), q, q, q, None, layout=layout, **option)


def test_a_window_shorter_than_a_sequence_is_refused() -> None:
    layout = AttentionLayout(torch.tensor([0, 9], dtype=torch.int32), (9,))
    q = torch.zeros(1, 1, 9, 4)
    with pytest.raises(NotImplementedError, match="window of 8"):
        packed_attention(nn.Module(), q, q, q, None, layout=layout, sliding_window=8)
