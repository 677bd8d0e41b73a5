"""Invariants of packing: the cap is hard, nothing is lost, ranks agree on the number of micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.learner.packing import costs, draw
from verl.data.packing import Plan, pack
from verl.errors import UserError


def check(plan: Plan, lengths: list[int], cap: int, ranks: int) -> None:
    assert len(plan) == ranks
    assert len({len(share) for share in plan}) == 1
    members = [index for share in plan for batch in share for index in batch]
    assert sorted(members) == list(range(len(lengths)))
    for share in plan:
        for batch in share:
            assert sum(lengths[i] for i in batch) <= cap


@settings(max_examples=400)
@given(
    st.lists(st.integers(1, 100), max_size=80),
    st.integers(100, 400),
    st.integers(1, 9),
    st.floats(0, 1e-2),
)
def test_cap_is_hard_and_every_sequence_is_packed_once(
    lengths: list[int], cap: int, ranks: int, quadratic: float
) -> None:
    plan = pack(lengths, cap, ranks, [length + quadratic * length**2 for length in lengths])
    check(plan, lengths, cap, ranks)


def test_two_ranks_are_not_turned_over_for_ever() -> None:
    lengths = [82, 37, 97, 82, 51]
    plan = pack(lengths, 245, 3, [length + 0.004242291126009042 * length**2 for length in lengths])
    check(plan, lengths, 245, 3)


def test_ten_thousand_random_batches_stay_within_the_cap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        lengths = rng.integers(1, 512, rng.integers(1, 24)).tolist()
        check(pack(lengths, 1024, 2), lengths, 1024, 2)


def test_ranks_are_balanced_by_cost() -> None:
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(np.log(1200), 0.6, 512), 1, 4096).astype(int).tolist()
    costs = [24576.0 * length + length**2 for length in lengths]
    loads = [sum(costs[i] for batch in share for i in batch) for share in pack(lengths, 16384, 8, costs)]
    assert max(loads) / (sum(loads) / 8) <= 1.03


def test_ranks_are_even_after_they_exchanged_sequences() -> None:
    imbalance = []
    for number in range(18):
        lengths = draw(number)
        flops = costs(lengths)
        plan = pack(lengths, 16_384, 4, flops)
        check(plan, lengths, 16_384, 4)
        loads = [sum(flops[i] for members in share for i in members) for share in plan]
        imbalance.append(4 * max(loads) / sum(loads) - 1)
    assert sum(imbalance) / len(imbalance) <= 0.001
    assert max(imbalance) <= 0.04


def test_exchanging_never_makes_the_busiest_rank_busier() -> None:
    """One giant, which no exchange can divide, and what lies beside it."""
    plan = pack([100, 30, 30, 30, 1], 100, 2, [100, 30, 30, 30, 1])
    loads = sorted(sum([100, 30, 30, 30, 1][i] for members in share for i in members) for share in plan)
    assert loads == [91, 100]


def test_same_input_gives_same_plan() -> None:
    lengths = [5, 9, 5, 5, 9, 1, 1]
    assert pack(lengths, 12, 2) == pack(lengths, 12, 2)


def test_no_sequences_give_every_rank_one_empty_microbatch() -> None:
    assert pack([], 10, 3) == (((),), ((),), ((),))


def test_sequence_above_the_cap_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"sequence 1 has 11 tokens, a micro-batch holds 10"):
        pack([3, 11], 10)
