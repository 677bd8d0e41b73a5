"""Two cards: FSDP2 over NCCL, weights by NCCL from one to the other, and the loop with learner and engine apart.

    python -m bench.gpu.two [--quick] [parts=learner,carrier,split]

What has no time left is left out and said.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.gpu import card, learner, loop, model, update
from bench.gpu.engine import ON_CARD, PUSHES
from bench.gpu.peer import EngineProcess, syncs
from bench.harness import Figure
from verl.learner.__main__ import own_card

LEAST_S = {"learner": 25.0, "carrier": 25.0, "split": 45.0}
SCALING_REACH = 0.9
"""Of twice what one card does."""


def measure(quick: bool) -> Iterator[Figure]:
    """The parts for which there is time."""
    clock = card.Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = model.write(Path(name) / "model")
        for part in clock.fitting((part, LEAST_S[part]) for part in card.parts(tuple(LEAST_S))):
            yield from PARTS[part](folder, quick, clock)


def fsdp(folder: Path, quick: bool, clock: card.Clock) -> Iterator[Figure]:
    """The presets' way of training on one card and on two, as many sequences a card."""
    speeds = {}
    for ranks in (1, 2):
        variant = replace(learner.VARIANTS[0], name=f"FSDP2 on {ranks} card{'s' * (ranks > 1)}")
        found = update.run(variant, folder, ranks, timeout_s=max(clock.left_s, 1.0))
        if found is not None:
            speeds[ranks] = found["tokens_per_second"]
            yield from learner.figures(variant.name, found, judged=False)
    if len(speeds) == 2:
        share = speeds[2] / speeds[1] / 2
        yield Figure.at_least("two cards against twice one", share, "share", SCALING_REACH).judged(not quick)


def carrier(folder: Path, quick: bool, clock: card.Clock) -> Iterator[Figure]:
    """Pushes to an engine on the second card; a wrong bit there raises."""
    second = own_card(1, os.environ.get("CUDA_VISIBLE_DEVICES"))
    engine = EngineProcess(folder, replace(ON_CARD, weight_transfer="nccl", enforce_eager=True), card=second)
    try:
        seconds, gib = syncs(engine, "nccl", folder, "bfloat16", 3 if quick else PUSHES)
    finally:
        engine.close()
    yield Figure(f"sync by nccl, {gib:.2f} GiB", seconds, "s")


def split(folder: Path, quick: bool, clock: card.Clock) -> Iterator[Figure]:
    """The loop's large steps, one card learning and one rolling out, a batch ahead."""
    overrides = loop.large(
        folder,
        "cluster.placement=split",
        "cluster.gpus_per_process=1",
        "rollout.engine.weight_transfer=nccl",
        "trainer.max_staleness=1",
        f"trainer.steps={2 if quick else 4}",
    )
    with tempfile.TemporaryDirectory() as run:
        overrides.append(f"cluster.gpu_memory_gib={loop.memory_gib():.0f}")
        steps = loop.train(Path(run) / "run", overrides, clock.left_s)
    yield from loop.figures("split", steps, overrides, judged=False)


PARTS: dict[str, Callable[[Path, bool, card.Clock], Iterator[Figure]]] = {
    "learner": fsdp,
    "carrier": carrier,
    "split": split,
}


if __name__ == "__main__":
    card.main(measure, cards=2, on_cpu=False)
