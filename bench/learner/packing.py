"""Packing: micro-batches above the cap, and how evenly FLOPs lie over ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.harness import Figure, main
from bench.learner.sizes import POLICY_SHARE, lognormal_lengths
from verl.data.packing import pack
from verl.learner.flops import FlopsModel

CAP, RANKS = 16_384, 8
# The matmuls of a Qwen2.5-1.5B.
SIZES = FlopsModel(layer_weights=1_310_000_000, attention_width=28 * 1536, head_weights=1536 * 151_936)


def measure(quick: bool) -> Iterator[Figure]:
    """Exact counts and formula FLOPs: no timing."""
    batches = 1_000 if quick else 10_000
    over = 0
    rng = np.random.default_rng(0)
    for number in range(batches):
        lengths = lognormal_lengths(int(rng.integers(1, 128)), seed=number)
        plan = pack(lengths, CAP, RANKS, costs(lengths))
        over += sum(sum(lengths[i] for i in members) > CAP for share in plan for members in share)
    yield Figure.at_most(f"micro-batches above the cap, {batches:,} random batches", over, "", 0)
    worst = max(imbalance(lognormal_lengths(512, seed=s)) for s in range(3 if quick else 20))
    yield Figure.at_most("FLOPs of the busiest rank / mean, 512 sequences, 8 ranks, worst batch", worst, "x", 1.03)


def costs(lengths: list[int]) -> list[float]:
    """Training FLOPs of each sequence."""
    return [SIZES.training_flops(length, int(length * POLICY_SHARE)) for length in lengths]


def imbalance(lengths: list[int]) -> float:
    """FLOPs of the busiest rank over the mean."""
    flops = costs(lengths)
    loads = [sum(flops[i] for members in share for i in members) for share in pack(lengths, CAP, RANKS, flops)]
    return max(loads) * RANKS / sum(loads)


if __name__ == "__main__":
    main(measure)
