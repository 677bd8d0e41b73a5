"""Two streams of weights have the same fingerprint only if they are the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from verl.sync.canary import Fingerprint


def fingerprint(named: Sequence[tuple[str, Tensor]]) -> int:
    account = Fingerprint()
    for name, tensor in named:
        account.add(name, tensor)
    return account.value()


WEIGHTS = [("a", torch.arange(6.0).view(2, 3)), ("b", torch.ones(5, dtype=torch.bfloat16)), ("c", torch.zeros(0))]


@pytest.mark.parametrize(
    "other",
    [
        WEIGHTS[:2],
        [WEIGHTS[1], WEIGHTS[0], WEIGHTS[2]],
        [("d", WEIGHTS[0][1]), *WEIGHTS[1:]],
        [("a", WEIGHTS[0][1].view(3, 2)), *WEIGHTS[1:]],
        [("a", WEIGHTS[0][1].double()), *WEIGHTS[1:]],
        [],
    ],
)
def test_what_is_missing_moved_renamed_or_reshaped_is_told(other: list[tuple[str, Tensor]]) -> None:
    assert fingerprint(other) != fingerprint(WEIGHTS)


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.uint8]),
    numbers=st.lists(st.integers(0, 100), min_size=1, max_size=9),
    place=st.integers(0, 8),
)
def test_one_number_that_differs_is_told(dtype: torch.dtype, numbers: list[int], place: int) -> None:
    sent = torch.tensor(numbers).to(dtype)
    came = sent.clone()
    came[place % len(numbers)] += 1
    assert fingerprint([("w", sent)]) == fingerprint([("w", sent.clone())])
    assert fingerprint([("w", sent)]) != fingerprint([("w", came)])


def test_a_view_counts_as_the_numbers_it_shows() -> None:
    whole = torch.arange(12.0).view(3, 4)
    assert fingerprint([("w", whole.T)]) == fingerprint([("w", whole.T.contiguous())])
