from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.data.order import EpochOrder


def test_each_epoch_holds_every_row_once_in_its_own_order() -> None:
    order = EpochOrder(list("abcdefgh"), 7, "train")
    first, second = order.take(0, 8), order.take(8, 8)
    assert sorted(first) == sorted(second) == list("abcdefgh")
    assert first != second


def test_the_order_depends_on_seed_and_name_and_not_on_what_was_read_before() -> None:
    rows = list(range(50))
    order = EpochOrder(rows, 7, "train")
    late_first = order[73], order[2]
    assert late_first == (EpochOrder(rows, 7, "train")[73], EpochOrder(rows, 7, "train")[2])
    assert EpochOrder(rows, 8, "train").take(0, 50) != order.take(0, 50)
    assert EpochOrder(rows, 7, "warmup").take(0, 50) != order.take(0, 50)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        EpochOrder([], 0, "train")


@given(rows=st.integers(12, 60), distinct=st.integers(1, 4), seed=st.integers(0, 1000))
def test_no_row_comes_twice_within_a_step_even_between_epochs(rows: int, distinct: int, seed: int) -> None:
    order = EpochOrder(range(rows), seed, "train", distinct=distinct)
    numbers = order.take(0, 4 * rows)
    for start in range(len(numbers) - distinct + 1):
        window = numbers[start : start + distinct]
        assert len(set(window)) == distinct
    for epoch in range(4):
        assert sorted(numbers[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
