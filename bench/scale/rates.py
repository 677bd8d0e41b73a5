"""This machine's row of ``docs/results/rates.yaml``: the quick start's shape and lengths, timed without a run.

    python -m bench.scale.rates [write]

Engine, learner and weights one after the other, each in a process of its own, in about a minute. ``write`` puts the row
in the place of the table's ``CPU``. A card's row is made by ``bench/gpu``.
"""

from __future__ import annotations

import asyncio
import json
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

PREFIX_TOKENS, READ_TOKENS, WRITTEN = 64, 48, 64
"""An episode of the quick start is read in pieces of about so many tokens, and writes about as many."""
EPISODES, UPDATES = 128, 5
SYNCED = (8, 512)
"""Layers and width of the model whose weights travel: the tiny one's are gone in a few milliseconds."""


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
    short = {key: float(f"{value:.3g}") for key, value in found.items()}
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
        f"  learn_tflops: {short['learn_tflops']}\n"
        f"  sync_gib_per_s: {{shm: {short['shm']}}}\n"
    )


def replaced(table: str, row: str) -> str:
    """The table with ``row`` in the place of all rows of its card, at the end."""
    head, *blocks = table.split("- card: ")
    card = yaml.safe_load(row)[0]["card"]
    return head + "".join(f"- card: {block}" for block in blocks if block.split()[0] != card) + row


def _process(part: str, folder: str) -> dict[str, float]:
    code = (
        "import sys, json; from bench.scale import rates; print(json.dumps(getattr(rates, sys.argv[1])(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, part, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{part}: ended with status {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def model(folder: str) -> dict[str, float]:
    """Two models: one of the quick start's shape, and a larger one."""
    from bench.learner.sizes import write_model as write_larger
    from bench.retrieval.world import words
    from preprocess.embedded.tiny_model import train_tokenizer, write_model
    from verl.model_shape import EMBEDDED, read_shape

    train_tokenizer([" ".join(words()[:2000])], Path(folder), EMBEDDED.vocabulary)
    write_model(Path(folder), EMBEDDED.vocabulary, 0)
    write_larger(Path(folder) / "larger", *SYNCED)
    return {"parameters": float(read_shape(folder).parameters)}


def engine(folder: str) -> dict[str, float]:
    """A step of the engine, with the quick start's settings."""
    from bench.scale import calibrate
    from search_agent.console.command import load_config
    from verl.model_shape import EMBEDDED
    from verl.rollout.engine import VllmEngine

    started = VllmEngine(folder, load_config([]).rollout.engine, seed=0)
    timing = asyncio.run(calibrate.timing(started, PREFIX_TOKENS, READ_TOKENS, EMBEDDED.vocabulary))
    rates = calibrate.rates(timing, READ_TOKENS)
    return {"step_s": rates.step_s, "request_s": rates.request_s, "read_s": rates.prefill_s}


def learner(folder: str) -> dict[str, float]:
    """An update of a step's episodes: median without the first two."""
    import numpy as np
    import torch

    from search_agent.console.command import load_config
    from verl.algorithms.config import LossConfig
    from verl.data.samples import TrainingSample
    from verl.learner.__main__ import join_group, timed_update
    from verl.learner.config import OptimizerConfig
    from verl.learner.learner import Learner
    from verl.learner.phase import Phase
    from verl.model_shape import EMBEDDED

    config = load_config([])
    torch.set_num_threads(config.cluster.learner_threads)
    join_group()
    trained = Learner(Path(folder), config.learner, seed=0)
    trained.begin_phase(Phase(OptimizerConfig(), LossConfig(), UPDATES))
    rng, length = np.random.default_rng(0), PREFIX_TOKENS + WRITTEN
    written = np.arange(length) >= PREFIX_TOKENS
    samples = [
        TrainingSample(
            token_ids=rng.integers(5, EMBEDDED.vocabulary, length).astype(np.int32),
            policy_mask=written,
            advantages=np.where(written, rng.normal(), 0).astype(np.float32),
            rollout_logprobs=np.where(written, -7, 0).astype(np.float32),
        )
        for _ in range(EPISODES)
    ]
    updates = [timed_update(trained, samples, 1.0) for _ in range(UPDATES)]
    return {"learn_tflops": statistics.median(update["tflops_per_rank"] for update in updates[2:])}


def sync(folder: str) -> dict[str, float]:
    """Weights by a file, from writing it to the engine's check of what it holds."""
    from bench.gpu.peer import EngineProcess, syncs
    from verl.rollout.engine_config import EngineConfig

    larger = Path(folder) / "larger"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (larger / file).write_bytes((Path(folder) / file).read_bytes())
    started = EngineProcess(larger, EngineConfig(max_context_tokens=512, kv_cache_gib=0.25))
    try:
        seconds, gib = syncs(started, "shm", larger, "float32", 5)
    finally:
        started.close()
    return {"shm": gib / seconds}


if __name__ == "__main__":
    main(sys.argv[1:])
