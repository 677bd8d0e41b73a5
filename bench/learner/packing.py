"""Packing: micro-batches above the cap, and how evenly FLOPs lie over ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.harness import Figure, main
from bench.learner.sizes import POLICY_SHARE, lognormal_lengths
from verl.data.packing import pack
from verl.learner.flops import FlopsModel

CAP, RANKS = 16_384, 8
SETS, SET_RANKS = 200, 4
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
    yield from balance(30 if quick else SETS)
    worst = max(imbalance(lognormal_lengths(512, seed=s)) for s in range(3 if quick else 20))
    yield Figure.at_most("FLOPs of the busiest rank / mean, 512 sequences, 8 ranks, worst batch", worst, "x", 1.03)


def balance(sets: int) -> Iterator[Figure]:
    """How evenly sets of lengths of three kinds lie over four ranks, and over those in each step."""
    drawn = [draw(number) for number in range(sets)]
    plans = [pack(lengths, CAP, SET_RANKS, costs(lengths)) for lengths in drawn]
    over = sum(
        sum(d[i] for i in m) > CAP for d, plan in zip(drawn, plans, strict=True) for share in plan for m in share
    )
    bins = [
        np.array([[sum(flops[i] for i in m) for m in share] for share in plan])
        for flops, plan in zip(map(costs, drawn), plans, strict=True)
    ]
    ranks = np.array([b.sum(1).max() / b.sum(1).mean() - 1 for b in bins]) * 100
    steps = np.array([b.max(0).sum() / b.mean(0).sum() - 1 for b in bins]) * 100
    yield Figure.at_most(f"micro-batches above the cap, {sets} sets over {SET_RANKS} ranks", over, "", 0)
    yield Figure.at_most("FLOPs of the busiest rank above the mean, mean of the sets", float(ranks.mean()), "%", 0.1)
    yield Figure.at_most("FLOPs of the busiest rank above the mean, worst set", float(ranks.max()), "%", 4)
    yield Figure("FLOPs of each step's busiest rank above the mean, mean of the sets", float(steps.mean()), "%")


def draw(number: int) -> list[int]:
    """128 to 1,024 lengths: log-normal, uniform, or bimodal (most short, some near the cap)."""
    rng = np.random.default_rng(number)
    count = int(rng.integers(128, 1025))
    lengths = (
        rng.lognormal(np.log(1500), 0.8, count),
        rng.uniform(50, 8192, count),
        np.where(rng.random(count) < 0.8, rng.normal(600, 150, count), rng.normal(9000, 2500, count)),
    )[number % 3]
    return [int(length) for length in np.clip(lengths, 32, CAP)]


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
