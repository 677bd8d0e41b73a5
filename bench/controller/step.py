"""What the controller does around a step (scoring, transfer, packing, records), engine and learner being stubs.

Real Ray, reward, assignment, packing and run folder; episodes come out of nothing and samples go nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.controller.child import Step, run
from bench.harness import Figure, main

TOKENS = 2_000
REFERENCE = 1_024
LARGEST, LONG_TOKENS = 16_384, 4_000
LINEAR = 1.25
"""What one episode may cost at the largest size, relative to one at the reference size: linear, within a quarter."""


def measure(quick: bool) -> Iterator[Figure]:
    """One process a size."""
    reference = run(REFERENCE, TOKENS)
    yield from figures_of_reference(reference)
    if not quick:
        sizes = [run(count, TOKENS) for count in (256, 4_096, LARGEST)]
        yield from figures_of_growth(reference, sizes)
        long = run(LARGEST, LONG_TOKENS)
        name = f"controller's memory, {LARGEST:,} episodes x {LONG_TOKENS:,} tokens"
        yield Figure.at_most(name, long.memory_mib / 1024, "GiB", 4)
        yield Figure(f"controller's work, {LARGEST:,} episodes x {LONG_TOKENS:,} tokens", long.seconds, "s")


def figures_of_reference(step: Step) -> Iterator[Figure]:
    """The step as a whole, and its stages."""
    name = f"{step.episodes:,} episodes x {step.tokens:,} tokens"
    yield Figure.at_most(f"controller's work, {name}", step.seconds, "s", 5)
    for stage in ("scoring", "collecting", "assigning", "sending", "packing", "writing"):
        yield Figure(f"of it {stage}", getattr(step, stage), "s")
    yield Figure(f"controller's memory, {name}", step.memory_mib, "MiB")


def figures_of_growth(reference: Step, sizes: list[Step]) -> Iterator[Figure]:
    """Time and memory of an episode at each size, relative to the reference size."""
    for step in sizes:
        seconds = step.seconds / step.episodes / (reference.seconds / reference.episodes)
        memory = step.memory_mib / step.episodes / (reference.memory_mib / reference.episodes)
        for what, ratio in (("time", seconds), ("memory", memory)):
            name = f"{what} an episode, {step.episodes:,} against {reference.episodes:,} episodes"
            larger = step.episodes > reference.episodes  # a small step's constant share says nothing about growth
            yield Figure.at_most(name, ratio, "x", LINEAR).judged(larger)


if __name__ == "__main__":
    main(measure)
