"""The engine on one card, Qwen2-1.5B's shape, bfloat16: ceiling, graphs, weights by each carrier, sleep.

    python -m bench.gpu.engine [--quick] [parts=sync,sleep,ceiling,eager]

What has no time left is left out and said; ``parts`` names what to begin with. NCCL needs two cards: ``bench.gpu.two``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from bench.gpu import card, model
from bench.gpu.peer import EngineProcess, syncs
from bench.harness import ROOT, Figure
from bench.rollout import ceiling
from verl.rollout.engine_config import EngineConfig

GROUPS, TOKENS = 32, 512
"""Of 8 episodes; the most that one writes, 256 in the mean."""
PUSHES = 20
SYNC_REACH_S = 0.5
ON_CARD = EngineConfig(
    dtype="bfloat16",
    max_context_tokens=2048,
    max_concurrent_requests=256,
    max_tokens_per_step=16384,
    split_prefill=True,
    gpu_memory_share=0.4,
    enforce_eager=False,
)
LEAST_S = {"ceiling": 130.0, "sync": 30.0, "sleep": 25.0, "eager": 60.0}
"""Each part, in order, and what it takes at least: the first engine of a machine takes 70 s to start."""
BUDGET_S = 250.0


def measure(quick: bool) -> Iterator[Figure]:
    """The parts for which there is time; without a card, ``sync`` and ``ceiling`` at a tiny size."""
    clock, on_card = card.Clock(BUDGET_S), card.count() > 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if on_card:
            model.write(folder)
        else:
            from bench.rollout.model import write

            write(folder)
        parts = card.parts(tuple(LEAST_S) if on_card else ("sync", "ceiling"))
        for part in clock.fitting((part, LEAST_S[part] if on_card else 0.0) for part in parts):
            yield from PARTS[part](folder, on_card, quick)


def play(folder: Path, on_card: bool, quick: bool, *, eager: bool = False) -> Iterator[Figure]:
    """Our worker against plain vLLM."""
    if not on_card:
        yield from ceiling.compare(folder, _tiny(), "tiny", groups=1, repeats=1, judged=False, tokens=32)
        return
    name, stop = "eager" if eager else "graphs", model.stop_string(folder)
    config = replace(ON_CARD, enforce_eager=eager)
    # Once each: an engine takes long to start beside what it plays.
    found = ceiling.compare(folder, config, name, groups=GROUPS, repeats=1, stop=stop, tokens=TOKENS, judged=not quick)
    yield from found


def sync(folder: Path, on_card: bool, quick: bool) -> Iterator[Figure]:
    """A push by each carrier that one card can have; a wrong bit on the other side raises."""
    config, dtype = (ON_CARD, "bfloat16") if on_card else (_tiny(), "float32")
    for carrier in ("ipc", "shm") if on_card else ("shm",):
        how = replace(config, weight_transfer=carrier, gpu_memory_share=0.3, enforce_eager=True)  # type: ignore[arg-type]
        engine = EngineProcess(folder, how)
        try:
            seconds, gib = syncs(engine, carrier, folder, dtype, 3 if quick or not on_card else PUSHES)
        finally:
            engine.close()
        figure = Figure.at_most(f"sync by {carrier}, {gib:.2f} GiB", seconds, "s", SYNC_REACH_S)
        yield figure.judged(on_card and carrier == "ipc")


def sleep(folder: Path, on_card: bool, quick: bool) -> Iterator[Figure]:
    """vLLM's two levels, by its own calls."""
    code = "import sys; from bench.engine.plain import sleep; sleep(*sys.argv[1:])"
    settings = json.dumps(asdict(replace(ON_CARD, enforce_eager=True)))
    done = subprocess.run([sys.executable, "-c", code, str(folder), settings], cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"sleeping ended with status {done.returncode}, see above")
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        yield Figure(name[: name.rindex(" (")], value, name[name.rindex("(") + 1 : -1])


PARTS: dict[str, Callable[[Path, bool, bool], Iterator[Figure]]] = {
    "ceiling": play,
    "sync": sync,
    "sleep": sleep,
    "eager": partial(play, eager=True),
}


def _tiny() -> EngineConfig:
    return EngineConfig(max_context_tokens=1024, kv_cache_gib=0.25)


if __name__ == "__main__":
    card.main(measure)
