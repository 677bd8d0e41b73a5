"""Tries to collapse the policy by many updates a batch and stale samples, and to cure it: docs/collapse.md.

All arms start from the same warm-up, with the same tasks and seeds, and differ in one thing each. They share one set of
live processes: between two arms the learner loads the warm-up again. Staleness is exact: a batch is trained on
``staleness`` versions after the weights that sampled it. Writes ``docs/results/collapse.png`` and, beside it, every
step's numbers. ``SLEUTH_BENCH_WARM=FOLDER`` takes a finished warm-up instead of making one; ``COLLAPSE_ARMS=a,b`` makes
some arms and keeps the others' numbers. ``--quick`` plays two steps of two arms and keeps nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.harness import ROOT, Figure, main
from bench.main_job.runs import new_folder
from bench.main_job.warm import warm_model
from search_agent.config import RunConfig
from search_agent.console.command import load_config
from search_agent.console.screen import new_picture, save_picture
from search_agent.data.inputs import read_inputs
from search_agent.launch import Live, processes
from search_agent.train import probe_ids
from verl.algorithms.config import CorrectionConfig, GuardConfig, LossConfig
from verl.cluster.guardian import start_guardian
from verl.data.order import EpochOrder
from verl.data.tasks import Task
from verl.learner.config import OptimizerConfig
from verl.learner.phase import Phase
from verl.rollout.groups import Group, GroupRequest
from verl.trainer.assign import assign
from verl.trainer.summary import summarize

STEPS, PROMPTS, SAMPLES = 20, 8, 8
PICTURE = ROOT / "docs" / "results" / "collapse.png"
Row = dict[str, float]
KEPT = (
    *("reward", "format_valid", "searches", "truncated", "policy_tokens", "uniform_groups", "trained_episodes"),
    *("good_logprob", "good_logprob_change", "entropy", "kl_old", "kl_reference", "clip_fraction", "guard_fraction"),
    *("effective_sample_share", "grad_norm"),
)


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    rate: float
    staleness: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
    updates: int = 4
    """Optimizer steps a batch is split into."""


_KL = LossConfig(kl_coefficient=0.1)
_TRUNCATE = LossConfig(correction=CorrectionConfig(mode="truncate"))
ARMS = {
    "preset rate": Arm(3e-4),
    "rate x3": Arm(1e-3),
    "rate x3 + guard": Arm(1e-3, 0, LossConfig(guard=GuardConfig(coefficient=0.2))),
    "rate x3 + guard x5": Arm(1e-3, 0, LossConfig(guard=GuardConfig(coefficient=1.0))),
    "rate x3 + KL": Arm(1e-3, 0, _KL),
    "preset rate, stale": Arm(3e-4, 2),
    "preset rate, stale + truncation": Arm(3e-4, 2, _TRUNCATE),
    "preset rate, stale + guard": Arm(3e-4, 2, LossConfig(guard=GuardConfig(coefficient=0.2, anchor="rollout"))),
    "preset rate, stale + KL": Arm(3e-4, 2, _KL),
    "rate x3, one update": Arm(1e-3, updates=1),
}


def measure(quick: bool) -> Iterator[Figure]:
    """Every arm's reward at the start, at best and at the end; nothing here holds or fails."""
    folder = new_folder("collapse")
    model = warm_model(folder / "warmup", quick=quick)
    wanted = os.environ.get("COLLAPSE_ARMS")
    arms = wanted.split(",") if wanted else list(ARMS)
    stored = PICTURE.with_suffix(".json")
    curves: dict[str, list[Row]] = json.loads(stored.read_text()) if wanted and stored.exists() else {}
    for updates in sorted({ARMS[name].updates for name in arms}, reverse=True):
        config = load_config(
            [
                f"model={model}",
                "warmup.steps=0",
                f"learner.updates_per_batch={updates}",
                f"run_dir={folder / f'run-{updates}'}",
                "cluster.start_timeout_s=900",
                "rollout.start_timeout_s=900",
            ]
        )
        chosen = [name for name in arms if ARMS[name].updates == updates][: 2 if quick else None]
        asyncio.run(play(config, chosen, 2 if quick else STEPS, curves, None if quick else stored))
    if not quick:
        draw(curves, PICTURE)
    for name, rows in curves.items():
        rewards = smooth([row["reward"] for row in rows])
        yield Figure(f"{name}: sampled reward, first step", rows[0]["reward"], "")
        yield Figure(f"{name}: sampled reward, best, smoothed", max(rewards), "")
        yield Figure(f"{name}: sampled reward, last, smoothed", rewards[-1], "")


async def play(
    config: RunConfig, arms: Sequence[str], steps: int, curves: dict[str, list[Row]], stored: Path | None
) -> None:
    """Add the steps of each arm to ``curves``, and keep them in ``stored``."""
    inputs = read_inputs(config)
    folder = Path(str(config.run_dir))
    guardian = start_guardian(folder)
    (folder / "logs").mkdir(exist_ok=True)
    try:
        async with processes(
            config,
            inputs.source,
            inputs.model,
            folder / "logs",
            guardian.scratch.resolve(),
            learn=True,
            probes=lambda: probe_ids(inputs.model),
        ) as live:
            assert live.learners is not None
            await live.pool.ready()
            await live.learners.begin_phase(Phase(OptimizerConfig(), LossConfig(), 1))
            await live.learners.save(folder / "start", hugging_face=False)
            order = EpochOrder(inputs.train, config.seed, "train", distinct=PROMPTS)
            for name in arms:
                curves[name] = await play_arm(ARMS[name], config, live, order, folder / "start", steps)
                print(name, [round(row["reward"], 3) for row in curves[name]], flush=True)
                keep(curves, stored)
    finally:
        guardian.close()


def keep(curves: dict[str, list[Row]], stored: Path | None) -> None:
    """What there is so far: a bench that is stopped has not worked for nothing."""
    if stored is not None:
        arms = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in curves.items()]
        stored.write_text("{\n" + ",\n".join(arms) + "\n}\n")


async def play_arm(
    arm: Arm, config: RunConfig, live: Live, order: EpochOrder[Task], start: Path, steps: int
) -> list[Row]:
    """Sample and train in turn; a batch waits ``staleness`` versions before it is trained on."""
    assert live.learners is not None
    assert live.sync is not None
    await live.learners.load(start)
    await live.learners.begin_phase(
        Phase(
            replace(config.trainer.optimizer, learning_rate=arm.rate, schedule="constant"), arm.loss, steps, arm.updates
        )
    )
    await live.sync.push(0)
    waiting: deque[list[Group]] = deque()
    rows: list[Row] = []
    for step in range(steps):
        waiting.append(await sample(step, config, live, order))
        row = summarize(waiting[-1])
        if len(waiting) > arm.staleness:
            samples, assigned = assign(
                waiting.popleft(),
                config.trainer.advantage,
                drop_uniform=True,
            )
            row |= assigned
            if samples:
                row |= await live.learners.update(samples, config.rollout.sampling.temperature)
                await live.sync.push(step + 1)
        rows.append({name: float(f"{row[name]:.5g}") for name in KEPT if name in row})
    return rows


async def sample(step: int, config: RunConfig, live: Live, order: EpochOrder[Task]) -> list[Group]:
    """One step's groups, by the weights that the engine holds now."""
    numbers = range(step * PROMPTS, (step + 1) * PROMPTS)
    sampling = config.rollout.sampling
    return await live.pool.run(
        [GroupRequest(n, order[n], SAMPLES, "train", "train", step, sampling) for n in numbers],
    )


def smooth(values: Sequence[float], width: int = 3) -> list[float]:
    """Mean of each value and up to ``width - 1`` before it."""
    return [
        sum(values[max(0, i + 1 - width) : i + 1]) / len(values[max(0, i + 1 - width) : i + 1])
        for i in range(len(values))
    ]


def draw(curves: dict[str, list[Row]], path: Path) -> None:
    """Reward, likelihood of good samples, entropy and KL of each arm; fresh samples left, stale ones right."""
    shown = {"reward": "sampled reward", "good_logprob": "log-prob of good samples", "entropy": "entropy, nats"}
    figure, axes = new_picture(len(shown), ncols=2, figsize=(11, 9), sharex=True, sharey="row")
    for name, rows in curves.items():
        column = int(ARMS[name].staleness > 0)
        for row, key in enumerate(shown):
            points = [(step, values[key]) for step, values in enumerate(rows) if key in values]
            steps, heights = zip(*points, strict=True) if points else ((), ())
            axes[row][column].plot(steps, smooth(heights), label=name)
    for row, label in enumerate(shown.values()):
        axes[row][0].set_ylabel(label)
    for column, title in enumerate(("fresh samples", "samples two versions stale")):
        axes[0][column].set_title(title)
        axes[-1][column].set_xlabel("step")
    save_picture(figure, axes.flat, path)


if __name__ == "__main__":
    main(measure)
