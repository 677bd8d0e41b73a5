"""One engine's rates, measured: what a step costs, and a request and a read token in it.

    python -m bench.scale.calibrate

On a card, with Qwen2-1.5B's shape and the settings of ``bench.gpu.engine``: lines for
``docs/results/rates.yaml``, in about a minute. Without one, of a tiny model, for a trial.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness import ROOT
from bench.scale.simulate import Rates

if TYPE_CHECKING:
    from verl.rollout.engine import VllmEngine

PREFIX_TOKENS, NEW_TOKENS, DECODED = 1200, 500, 33
FEW, MANY = 1, 64


@dataclass(frozen=True)
class Timing:
    """Seconds inside engine steps."""

    decode_few_s: float
    """A decoding step of ``FEW`` requests."""
    decode_many_s: float
    """One of ``MANY``, or as many as were asked for."""
    read_s: float
    """Reading new tokens behind a cached prefix, once for each of many requests, with one decoding step."""


def rates(timing: Timing, new_tokens: int = NEW_TOKENS, many: int = MANY) -> Rates:
    """The three unknowns of three timings."""
    request_s = (timing.decode_many_s - timing.decode_few_s) / (many - FEW)
    step_s = timing.decode_few_s - FEW * request_s
    return Rates(step_s, request_s, (timing.read_s - timing.decode_many_s) / (many * new_tokens))


def measure(model: Path, engines: int = 1, *, first_core: int = 0) -> Rates:
    """The mean of so many engines at the same time, each in a process and on a core of its own.

    Engines of one machine share its memory, and slow one another down.
    """
    with ThreadPoolExecutor(engines) as pool:
        timings = list(pool.map(partial(_timed, model), range(first_core, first_core + engines)))
    means = (sum(column) / engines for column in zip(*map(astuple, timings), strict=True))
    return rates(Timing(*means))


def _timed(model: Path, core: int) -> Timing:
    code = "import sys; from bench.scale.calibrate import child; child(sys.argv[1])"
    command = ["taskset", "-c", str(core), sys.executable, "-c", code, str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the calibration ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def child(model: str) -> None:
    """The process; its last line is ``Timing`` as JSON."""
    from bench.rollout.workload import engine_config
    from verl.rollout.engine import VllmEngine

    engine = VllmEngine(model, engine_config(prefix_caching=True), seed=0)

    async def once() -> Timing:
        found = await timing(engine, PREFIX_TOKENS, NEW_TOKENS, 1500)
        await engine.close()
        return found

    print(json.dumps(asdict(asyncio.run(once()))))


async def timing(
    engine: VllmEngine, prefix_tokens: int, new_tokens: int, vocabulary: int, many: int = MANY, seed: int = 0
) -> Timing:
    """Of an engine that has no special tokens from 5 to ``vocabulary``; another seed has other tokens."""
    draw = random.Random(seed)
    prefixes = [[draw.randrange(5, vocabulary) for _ in range(prefix_tokens)] for _ in range(many)]
    await _busy_s(engine, prefixes, 1)  # fills the cache
    decode = [
        (await _busy_s(engine, prefixes[:count], DECODED) - await _busy_s(engine, prefixes[:count], 1)) / (DECODED - 1)
        for count in (FEW, many)
    ]
    longer = [[*prefix, *draw.choices(range(5, vocabulary), k=new_tokens)] for prefix in prefixes]
    return Timing(decode[0], decode[1], await _busy_s(engine, longer, 1))


async def _busy_s(engine: VllmEngine, prompts: list[list[int]], tokens: int) -> float:
    from verl.rollout.engine import GenerateRequest
    from verl.rollout.interfaces import Sampling, Turn

    before = engine.stats().busy_s
    # A stop string that never comes: the text is looked at, as in a real turn. Special tokens may end a request early;
    # with so few tokens hardly any does.
    turn = Turn(tokens, ("no such text",))
    await asyncio.gather(
        *engine.generate_many([GenerateRequest(ids, turn, Sampling(), seed) for seed, ids in enumerate(prompts)])
    )
    return engine.stats().busy_s - before


ON_CARD, ON_CPU = (256, 512), (8, 64)
"""Requests together, and tokens behind which as many new ones are read."""


def main() -> None:
    """Print the rates."""
    import tempfile

    from bench.gpu import card, model
    from bench.gpu.engine import ON_CARD as SETTINGS
    from bench.rollout.model import write
    from bench.scale.rates import number
    from verl.model_shape import read_shape
    from verl.rollout.engine import EngineConfig, VllmEngine

    on_card = card.count() > 0
    (many, tokens), config = (ON_CARD, SETTINGS) if on_card else (ON_CPU, EngineConfig(max_context_tokens=512))
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "model"
        model.write(policy) if on_card else write(policy)
        shape = read_shape(str(policy))
        engine = VllmEngine(policy, config, seed=0)

        async def measure() -> Rates:
            found = await timing(engine, tokens, tokens, shape.vocabulary, many)
            await engine.close()
            return rates(found, tokens, many)

        found = asyncio.run(measure())
    print(f"  parameters: {shape.parameters:.1f}")
    for key, value in (("step_s", found.step_s), ("request_s", found.request_s), ("read_s", found.prefill_s)):
        print(f"  {key}: {number(value)}")


if __name__ == "__main__":
    main()
