"""The whole loop on one shared card: the quick start in float32, and steps of Qwen2-1.5B's shape in bfloat16.

    python -m bench.gpu.loop [--quick] [parts=large,quickstart]

Runs of the real ``train``, cut short. What has no time left is left out and said.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.gpu import card, model
from bench.harness import ROOT, Figure

SHARED = (
    "cluster.placement=shared",
    "cluster.gpus_per_process=0.5",
    "cluster.object_store_mib=2048",
    "cluster.start_timeout_s=600",
    "rollout.start_timeout_s=600",
    "evaluation.dev_tasks=8",
    "evaluation.test_tasks=8",
    "trainer.drop_uniform_groups=false",
    "trainer.keep_checkpoints=1",
)
QUICKSTART = (*SHARED, "rollout.engine.gpu_memory_share=0.3", "warmup.steps=150", "trainer.steps=6")
LARGE = (
    "warmup.steps=0",
    "trainer.steps=3",
    "trainer.prompts_per_step=32",
    "environment.max_turns=0",
    "environment.max_tokens_per_turn=997",
    "environment.max_prompt_tokens=640",
    "rollout.engine.dtype=bfloat16",
    "rollout.engine.max_context_tokens=1540",
    "rollout.engine.max_tokens_per_step=16384",
    "rollout.engine.split_prefill=true",
    "rollout.engine.enforce_eager=false",
    "rollout.engine.gpu_memory_share=0.4",
    "learner.compute_dtype=bfloat16",
    "learner.max_logits_mib=4096",
    "learner.max_tokens_per_microbatch=16384",
    "trainer.optimizer.learning_rate=1e-6",
    "evaluation.decodings=[{name: sampled}]",
)
"""32 x 8 episodes of one turn, of 1,050 tokens with their prompts: random weights write until they are cut."""
STEP_REACH_S, DIFFERENCE_REACH, PREDICTION_REACH = 12.0, 1e-4, 0.2
LEAST_S = {"large": 150.0, "quickstart": 90.0}
BUDGET_S = 250.0
"""The first engine of a machine takes 70 s to start (vLLM looks at the model, kernels are compiled), the first steps as
much again: longer than other commands."""


def large(folder: Path, *more: str) -> list[str]:
    """The overrides of the large run, by ``ipc`` on a shared card."""
    return [f"model={folder}", *SHARED, *LARGE, "rollout.engine.weight_transfer=ipc", *more]


def measure(quick: bool) -> Iterator[Figure]:
    """The parts for which there is time."""
    clock = card.Clock(BUDGET_S)
    with tempfile.TemporaryDirectory() as name:
        for part in clock.fitting((part, LEAST_S[part]) for part in card.parts(tuple(LEAST_S))):
            folder = Path(name) / part
            overrides = list(QUICKSTART) if part == "quickstart" else large(model.write(folder / "model"))
            overrides += ["trainer.steps=2"] if quick else []
            found = train(folder / "run", [*overrides, f"cluster.gpu_memory_gib={memory_gib():.0f}"], clock.left_s)
            yield from figures(part, found, overrides, judged=not quick)


def memory_gib() -> float:
    """Of the card."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / card.GIB


def train(folder: Path, overrides: Sequence[str], timeout_s: float) -> list[dict[str, Any]]:
    """The metrics of each step of a run; of those that it took, where the time ran out."""
    command = [sys.executable, "-m", "search_agent.train", f"run_dir={folder}", *overrides]
    # In a group of its own, so that what it started can be told to end with it.
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, env={**os.environ}, start_new_session=True)
    try:
        if process.wait(timeout=max(timeout_s, 1.0)):
            raise SystemExit(f"the run ended with status {process.returncode}, see above")
    except subprocess.TimeoutExpired:
        print(f"the run was ended after {timeout_s:.0f} s", flush=True)
    finally:
        process.terminate()
        process.wait()
    metrics = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return [row for row in rows if "seconds/step" in row]


def figures(part: str, steps: Sequence[dict[str, Any]], overrides: Sequence[str], *, judged: bool) -> Iterator[Figure]:
    """Medians without the first step, which compiles; the prediction where the card has a row."""
    if not steps:
        return
    timed = steps[1:] or steps
    seconds = {what: statistics.median(row[f"seconds/{what}"] for row in timed) for what in _PARTS}
    yield Figure.at_most(f"{part}: a step", seconds["step"], "s", STEP_REACH_S).judged(judged and part == "large")
    for what in _PARTS[1:]:
        yield Figure(f"{part}: {what}", seconds[what], "s")
    yield Figure(f"{part}: tokens of an episode", timed[-1]["tokens"], "tokens")
    most = max(row["logprob_diff_max"] for row in steps)
    figure = Figure.at_most(f"{part}: rollout against learner, log-prob, most", most, "nats", DIFFERENCE_REACH)
    yield figure.judged(judged and part == "quickstart")
    yield Figure(f"{part}: rollout against learner, log-prob, mean", steps[-1]["logprob_diff_mean"], "nats")
    said = predicted_s(overrides, timed)
    if said is not None:
        off = abs(said / seconds["step"] - 1)
        yield Figure.at_most(f"{part}: step, predicted, off", off, "share", PREDICTION_REACH).judged(judged)


_PARTS = ("step", "rollout", "learn", "sync")


def predicted_s(overrides: Sequence[str], steps: Sequence[dict[str, Any]]) -> float | None:
    """What ``dry_run`` would say of episodes as long as these; None for a card without rates."""
    from search_agent.console.command import load_config
    from search_agent.planning.prediction import as_recorded, predict
    from search_agent.planning.preflight import known_shape
    from search_agent.planning.rates import rates_of, read_rates

    table = read_rates()
    rates = next((rates_of(row.card, table) for row in table if row.card in card.machine()), None)
    config = as_recorded(load_config(overrides), steps)
    shape = known_shape(config)
    return None if rates is None or shape is None else predict(config, shape, rates).step_s


if __name__ == "__main__":
    card.main(measure, on_cpu=False)
