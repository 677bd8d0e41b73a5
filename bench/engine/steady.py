"""An engine at work: generation, what a request's own seed costs, and a weight sync through shared memory."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.engine.model import write
from bench.harness import Figure, main
from verl.rollout.engine import EngineConfig, GenerateRequest, VllmEngine
from verl.rollout.interfaces import Sampling, Turn

REQUESTS, TOKENS = 128, 64


def measure(quick: bool) -> Iterator[Figure]:
    """One engine, warmed up; medians of repeated batches and syncs."""
    repeats = 3 if quick else 10
    with tempfile.TemporaryDirectory() as folder:
        model = write(Path(folder) / "model")
        engine = VllmEngine(model, EngineConfig(max_context_tokens=512), seed=0)
        seconds = asyncio.run(batches(engine, repeats))
        publishing, loading = asyncio.run(syncs(engine, model, Path(folder), repeats))
        asyncio.run(engine.close())
    rate = REQUESTS * TOKENS / seconds
    yield Figure(f"generation, {REQUESTS} requests at once, one thread", rate, "tokens/s")
    yield Figure("publish weights to shared memory, quick start's model", publishing * 1e3, "ms")
    yield Figure("load published weights in place", loading * 1e3, "ms")
    yield Figure.at_most("sync against a batch of that many tokens", (publishing + loading) / seconds, "share", 0.05)


async def batches(engine: VllmEngine, repeats: int) -> float:
    """Median seconds of a batch in which every request generates ``TOKENS`` tokens or ends its turn by itself."""
    durations = []
    for repeat in range(repeats + 1):
        turn = Turn(TOKENS, ("</search>", "</answer>"))
        requests = [GenerateRequest([5, i, repeat], turn, Sampling(), i) for i in range(REQUESTS)]
        began = time.perf_counter()
        done = await asyncio.gather(*engine.generate_many(requests))
        tokens = sum(len(generation.token_ids) for generation in done)
        durations.append((time.perf_counter() - began) * REQUESTS * TOKENS / tokens)
    return statistics.median(durations[1:])


async def syncs(engine: VllmEngine, model: Path, folder: Path, repeats: int) -> tuple[float, float]:
    """Median seconds to publish and to load."""
    from transformers import AutoModelForCausalLM

    from verl.sync.file import publish
    from verl.sync.relay import release

    weights: Any = AutoModelForCausalLM.from_pretrained(model)
    times = []
    shared = Path("/dev/shm") / folder.name
    for version in range(1, repeats + 1):
        began = time.perf_counter()
        update = publish(weights.named_parameters(), version, shared)
        published = time.perf_counter()
        await engine.update_weights(update, version)
        times.append((published - began, time.perf_counter() - published))
        release(update)
    shared.rmdir()
    return statistics.median(time[0] for time in times), statistics.median(time[1] for time in times)


if __name__ == "__main__":
    main(measure)
