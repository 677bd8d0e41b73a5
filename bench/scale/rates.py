"""This machine's row of ``docs/results/rates.yaml``: the quick start's shape and lengths, timed without a run.

    python -m bench.scale.rates [write]

Engine, learner and weights one after the other, each in a process of its own with the threads that a run gives it, in
about two minutes; on a busy machine they mean nothing. ``write`` puts the row in the place of the table's ``CPU``. A
card's row is made by ``bench/gpu`` and ``bench.scale.calibrate``.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from bench.harness import ROOT, circumstances
from search_agent.planning.rates import TABLE

PREFIX_TOKENS, READ_TOKENS = 64, 64
"""An episode of the quick start has about twice as many tokens."""
EPISODES, REPEATS = 128, 7
SYNCED = (8, 512)
"""Layers and width of the larger of two models whose weights travel: the tiny one's push is all fixed cost."""


def main(arguments: list[str]) -> None:
    """Measure, print, and with ``write`` keep."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("model", "engine", "learner", "sync"):
            found |= _process(part, folder)
    row = as_row(found, circumstances())
    print(row)
    if arguments == ["write"]:
        TABLE.write_text(replaced(TABLE.read_text(encoding="utf-8"), row), encoding="utf-8")


def as_row(found: Mapping[str, float], at: Mapping[str, Any]) -> str:
    """A block of the table, in three digits."""
    short = {key: number(value) for key, value in found.items()}
    return (
        f"- card: CPU\n"
        f'  date: "{datetime.now(UTC):%Y-%m-%d}"\n'
        f'  commit: "{at["commit"]}"\n'
        f"  source: \"bench/scale/rates.py: {at['cores']} cores of an {at['processor']}; the quick start's model, "
        f'lengths and threads"\n'
        f"  parameters: {found['parameters']:.1f}\n"
        f"  step_s: {short['step_s']}\n"
        f"  request_s: {short['request_s']}\n"
        f"  read_s: {short['read_s']}\n"
        f"  turn_s: {short['turn_s']}\n"
        f"  learn_tflops: {short['learn_tflops']}\n"
        f"  sync_gib_per_s: {{shm: {short['shm']}}}\n"
        f"  push_s: {short['push_s']}\n"
    )


def number(value: float) -> str:
    """In three digits, and as YAML reads a number: to it ``9e-06`` is a word."""
    return str(yaml.safe_dump(float(f"{value:.3g}"))).split()[0]


def replaced(table: str, row: str) -> str:
    """The table with ``row`` in the place of all rows of its card, at the end."""
    head, *blocks = table.split("- card: ")
    card = yaml.safe_load(row)[0]["card"]
    return head + "".join(f"- card: {block}" for block in blocks if block.split()[0] != card) + row


def _process(part: str, folder: str) -> dict[str, float]:
    code = (
        "import sys, json; from bench.scale import rates; print(json.dumps(getattr(rates, sys.argv[1])(sys.argv[2])))"
    )
    from search_agent.console.command import load_config
    from verl.cluster.processes import thread_environment

    # As an actor has them: threads that sleep when idle are slower to start, and leave the cores to others.
    config = load_config([])
    threads = config.cluster.learner_threads if part == "learner" else config.rollout.engine.threads
    command = [sys.executable, "-c", code, part, folder]
    environment = {**os.environ, **thread_environment(threads)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{part}: ended with status {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def model(folder: str) -> dict[str, float]:
    """The quick start's world with its model, and a larger model."""
    from bench.learner.sizes import write_model as write_larger
    from preprocess.embedded.build import Config, build_world
    from verl.model_shape import read_shape

    root = build_world(Config(dev_questions=5, test_questions=5, traces=5, out=folder))
    write_larger(root / "larger", *SYNCED)
    return {"parameters": float(read_shape(str(root / "model")).parameters)}


def engine(folder: str) -> dict[str, float]:
    """A step of the engine and a turn, with the quick start's settings: medians."""
    from bench.scale import calibrate
    from bench.scale.turns import SAMPLES, play_batches
    from search_agent.console.command import load_config
    from search_agent.planning.rates import Rates
    from verl.model_shape import read_shape
    from verl.rollout.engine import VllmEngine

    config, root = load_config([]), Path(folder)
    words = read_shape(str(root / "model")).vocabulary
    started = VllmEngine(root / "model", config.rollout.engine, seed=0)

    async def measure() -> dict[str, float]:
        read = {}
        for tokens in (READ_TOKENS, 3 * READ_TOKENS):
            timings = [
                await calibrate.timing(started, PREFIX_TOKENS, tokens, words, EPISODES, tokens + seed)
                for seed in range(REPEATS)
            ]
            read[tokens] = statistics.median(timing.read_s for timing in timings)
        few, many = (statistics.median(getattr(t, f"decode_{n}_s") for t in timings) for n in ("few", "many"))
        at = calibrate.rates(calibrate.Timing(few, many, many), many=EPISODES)
        # Taking a request in is a turn's, whatever it reads.
        read_s = (read[3 * READ_TOKENS] - read[READ_TOKENS]) / (EPISODES * 2 * READ_TOKENS)
        row = Rates("CPU", "", "", "", 1.0, at.step_s, at.request_s, read_s=max(0.0, read_s))
        groups = EPISODES // SAMPLES
        batches = await play_batches(started, root / "model", root / "corpus.jsonl", config, groups, REPEATS)
        await started.close()
        turn_s = statistics.median(batch.turn_s(row) for batch in batches)
        return {"step_s": at.step_s, "request_s": at.request_s, "read_s": row.read_s, "turn_s": turn_s}

    return asyncio.run(measure())


def learner(folder: str) -> dict[str, float]:
    """Updates on a step's episodes, other ones and other lengths each time: median without the first two."""
    import numpy as np
    import torch

    from search_agent.console.command import load_config
    from verl.algorithms.config import LossConfig
    from verl.data.samples import TrainingSample
    from verl.learner.__main__ import join_group, timed_update
    from verl.learner.config import OptimizerConfig
    from verl.learner.learner import Learner
    from verl.learner.phase import Phase
    from verl.model_shape import read_shape

    config = load_config([])
    torch.set_num_threads(config.cluster.learner_threads)
    join_group()
    trained = Learner(Path(folder) / "model", config.learner, seed=0)
    trained.begin_phase(Phase(OptimizerConfig(), LossConfig(), REPEATS))
    words = read_shape(str(Path(folder) / "model")).vocabulary
    rng, longest = np.random.default_rng(0), 2 * (PREFIX_TOKENS + READ_TOKENS)

    def sample(length: int) -> TrainingSample:
        written = np.arange(length) >= length // 2
        return TrainingSample(
            token_ids=rng.integers(5, words, length).astype(np.int32),
            policy_mask=written,
            advantages=np.where(written, rng.normal(), 0).astype(np.float32),
            rollout_logprobs=np.where(written, -7, 0).astype(np.float32),
        )

    batches = [[sample(int(length)) for length in rng.integers(16, longest, EPISODES)] for _ in range(REPEATS)]
    updates = [timed_update(trained, batch, 1.0) for batch in batches]
    return {"learn_tflops": statistics.median(update["tflops_per_rank"] for update in updates[2:])}


def sync(folder: str) -> dict[str, float]:
    """Weights by a file, from writing it to the check of what the engine holds; of two sizes."""
    from bench.gpu.peer import EngineProcess, syncs
    from verl.rollout.engine_config import EngineConfig

    small, larger = Path(folder) / "model", Path(folder) / "larger"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (larger / file).write_bytes((small / file).read_bytes())
    pushed = []
    for model in (small, larger):
        started = EngineProcess(model, EngineConfig(max_context_tokens=512, kv_cache_gib=0.25))
        try:
            pushed.append(syncs(started, "shm", model, "float32", REPEATS))
        finally:
            started.close()
    (short_s, little), (long_s, much) = pushed
    speed = (much - little) / (long_s - short_s)
    return {"shm": speed, "push_s": max(0.0, short_s - little / speed)}


if __name__ == "__main__":
    main(sys.argv[1:])
