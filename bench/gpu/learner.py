"""The learner on one card, Qwen2-1.5B's shape, bfloat16: utilisation, memory by part, head, attention, offload.

    python -m bench.gpu.learner [--quick]

Needs torch, transformers and this repository: no Ray, no vLLM, no Hydra. FLOPs are those of the formula: causal
attention counts half, the LM head only where it ran, recomputation not at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu import card, kernels, model, update
from bench.gpu.update import Variant
from bench.harness import Figure
from bench.learner.sizes import write_model
from verl.learner.config import LearnerConfig

DEFAULT_CAP, SEQUENCES = LearnerConfig().max_tokens_per_microbatch, 24
"""The packs of the presets, and about 30,000 tokens an update."""
REACH = 0.45
OFFLOADED = ", optimizer offloaded"
VARIANTS = (
    Variant("presets: packs of 16,384", DEFAULT_CAP, SEQUENCES),
    Variant("all layers recomputed", DEFAULT_CAP, SEQUENCES, recompute=True),
    Variant("packs of 4,096", 4096, SEQUENCES),
    Variant("head chunks of 256 MiB", DEFAULT_CAP, SEQUENCES, logits_mib=256),
    Variant("packs of 4,096" + OFFLOADED, 4096, SEQUENCES, offload="optimizer"),
)
"""The first is judged: it is what the recipes for GPUs run with."""
TINY = (
    Variant("tiny", 4096, 2, compute_dtype="float32", steps=3),
    Variant("tiny" + OFFLOADED, 4096, 2, compute_dtype="float32", offload="optimizer", steps=3),
)
LEAST_S = 20.0
"""What a variant takes at least: a fresh process, a model to load."""


def measure(quick: bool) -> Iterator[Figure]:
    """Kernels in this process, then a process a variant, while there is time."""
    clock, on_card = card.Clock(), card.count() > 0
    losses: dict[str, tuple[float, ...]] = {}
    yield from kernels.head(on_card)
    yield from kernels.attention(on_card)
    with tempfile.TemporaryDirectory() as name:
        folder = model.write_weights(Path(name)) if on_card else write_model(Path(name))
        kernels.release()
        variants = {variant.name: variant for variant in (VARIANTS if on_card else TINY)[: 2 if quick else None]}
        for chosen in clock.fitting((one, LEAST_S if on_card else 0.0) for one in variants):
            found = update.run(variants[chosen], folder, timeout_s=max(clock.left_s, LEAST_S))
            if found is not None:
                yield from figures(chosen, found, judged=chosen == VARIANTS[0].name)
                losses[chosen.removesuffix(OFFLOADED)] = (
                    *losses.get(chosen.removesuffix(OFFLOADED), ()),
                    found["loss"],
                )
    for chosen, (one, *others) in losses.items():
        for other in others:
            yield Figure.at_most(f"{chosen}: loss, offloaded against not", abs(other / one - 1), "relative", 1e-3)


def figures(name: str, found: dict[str, Any], *, judged: bool) -> Iterator[Figure]:
    """One variant's rows; utilisation where the card's peak is known."""
    yield Figure(f"{name}: update", found["tokens_per_second"], "tokens/s")
    yield Figure(f"{name}: model TFLOP/s", found["tflops_per_rank"], "TFLOP/s")
    if not found["peak_gib"]:
        return
    if (peak := card.peak_tflops(card.machine())) is not None:
        share = found["tflops_per_rank"] / peak
        yield Figure.at_least(f"{name}: model FLOPs utilisation of {peak:g}", share, "share", REACH).judged(judged)
    yield Figure(f"{name}: kernels launched", found["launches"], "an update")
    yield Figure(f"{name}: memory, loaded", found["loaded_gib"], "GiB")
    yield Figure(f"{name}: memory, between steps", found["held_gib"], "GiB")
    yield Figure(f"{name}: memory, peak", found["peak_gib"], "GiB")
    for when, seen, planned in (
        ("between steps", "held_gib", "predicted_gib"),
        ("at its peak", "peak_gib", "predicted_peak_gib"),
    ):
        off = abs(found[seen] / found[planned] - 1)
        yield Figure.at_most(f"{name}: memory {when}, off the plan's", off, "share", 0.1)


if __name__ == "__main__":
    card.main(measure)
