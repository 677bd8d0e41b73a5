"""An asynchronous run of an hour while its retrieval servers are killed, hung and replaced: nothing grows or is lost.

    bash cmd/bench.sh faults/soak [--quick] [minutes=60] [latency=0.3] [out=FILE]

Two servers stand behind fronts that add a drawn latency (median ``latency`` seconds, 2 % of 5 s). Each minute one of
them suffers: killed with SIGKILL and started again, or for five seconds status 500, silence, half a body, refused
connections, garbage, slowness or replies of 100 MB. Each minute is a JSON line in ``out``: memory, handles and threads
of all processes of the run, steps, episodes, episodes lost.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.faults import runs
from bench.faults.site import Misfortune, Site
from bench.faults.vitals import draw, look
from bench.harness import ROOT, Figure, main

STALENESS, PROMPTS, SAMPLES = 2, 4, 4
SETTLE_MINUTES = 10
"""Minutes after which nothing may grow: until then caches fill and allocators find their size."""
PICTURE = ROOT / "docs" / "results" / "soak.png"
MISFORTUNES: Sequence[Misfortune] = (
    *("kill", "status_500", "hang", "half_body"),
    *("kill", "refused", "garbage", "slow", "huge"),
)

RUN = (
    "warmup.steps=300",
    "warmup.sequences_per_step=16",
    "trainer.steps=1000000",
    f"trainer.prompts_per_step={PROMPTS}",
    f"trainer.samples_per_prompt={SAMPLES}",
    f"trainer.max_staleness={STALENESS}",
    "trainer.save_every_steps=50",
    "trainer.drop_uniform_groups=false",
    "trainer.optimizer.learning_rate=1e-6",  # the policy of the warm-up goes on searching
    "evaluation.every_steps=200",
    "evaluation.dev_tasks=8",
    "evaluation.test_tasks=8",
    "rollout.engine.kv_cache_gib=0.0625",  # full, and so as large as it gets, within minutes
    "rollout.engine.threads=1",
    "cluster.learner_threads=1",
    "cluster.start_timeout_s=600",
    "client.timeout_s=10",
    "client.retries=12",
    "tracking.console=false",
)


def figures(quick: bool, minutes: float = 60, latency: float = 0.3, out: str = "runs/soak.jsonl") -> Iterator[Figure]:
    """``--quick`` takes seconds, from the cold model, which show that it works and nothing about growth."""
    minutes = 0.2 if quick else minutes
    settle = min(SETTLE_MINUTES, minutes / 2)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir="runs" if Path("runs").is_dir() else None) as folder:
        run_dir = Path(folder) / "run"
        keys = [*RUN, "warmup.steps=0"] if quick else RUN
        samples = asyncio.run(_soak(run_dir, keys, minutes, latency, Path(out)))
        trained = runs.rows(run_dir, "trained.jsonl")
    if not samples or not trained:
        raise SystemExit(f"the run did not train: {runs.output(run_dir) if run_dir.exists() else ''}")
    if not quick:
        draw(samples, PICTURE)
    late = [sample for sample in samples if sample["minute"] > settle]
    first, last = late[: max(1, len(late) // 4)], late[-max(1, len(late) // 4) :]
    for what, unit, bound in (("memory_mb", "memory", 1.05), ("handles", "file handles", 1.02), ("threads", "", 1.02)):
        growth = _median(last, what) / _median(first, what)
        name = f"{unit or what}, last quarter / first after {settle:g} min"
        yield Figure.at_most(name, growth, "x", bound).judged(not quick)
    groups = [number for row in trained for number in row["groups"]]
    yield Figure.at_most("episodes lost", sum(row["aborted"] for row in trained), "", 0)
    yield Figure.at_most("groups trained twice", len(groups) - len(set(groups)), "", 0)
    skipped = set(range(len(groups) - (STALENESS + 1) * PROMPTS)) - set(groups)
    yield Figure.at_most("groups left out", len(skipped), "", 0)
    yield Figure.at_most("staleness", max(row["staleness"] for row in trained), "versions", STALENESS)
    yield Figure.at_least("retrieval faults survived", samples[-1]["faults"], "", 1)
    yield Figure("minutes", samples[-1]["minute"], "min")
    yield Figure("steps", len(trained), "")
    yield Figure("episodes", sum(row["episodes"] for row in trained), "")
    yield Figure("searches", samples[-1]["searches"], "")
    yield Figure("memory at the end", samples[-1]["memory_mb"], "MB")


def _median(samples: Sequence[dict[str, Any]], key: str) -> float:
    values = sorted(float(sample[key]) for sample in samples)
    return values[len(values) // 2]


async def _soak(run_dir: Path, keys: Sequence[str], minutes: float, latency: float, out: Path) -> list[dict[str, Any]]:
    corpus = _corpus()
    async with AsyncExitStack() as stack:
        sites = [Site(corpus, run_dir.with_name(f"server_{number}.log"), latency) for number in range(2)]
        for site in sites:
            await site.start()
            stack.push_async_callback(site.stop)
            await stack.enter_async_context(site.proxy)
        urls = ",".join(site.proxy.url for site in sites)
        process = runs.launch(run_dir, [*keys, f"retriever='{urls}'"])
        stack.callback(_end, process)
        if not await _trains(process, run_dir):
            raise SystemExit(runs.output(run_dir)[-3000:] + runs.logs(run_dir))
        return await _minutes(process, run_dir, sites, minutes, out)


def _corpus() -> Path:
    from preprocess.embedded.source import Config, build

    corpus = build(Config(), out=Path("data"), seed=0).train.corpus
    assert corpus is not None
    return corpus


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


async def _trains(process: subprocess.Popen[str], run_dir: Path) -> bool:
    """Wait for the first step of reinforcement; False if the run ended before."""
    while not runs.rows(run_dir, "trained.jsonl"):
        if process.poll() is not None:
            return False
        await asyncio.sleep(1)
    return True


async def _minutes(
    process: subprocess.Popen[str], run_dir: Path, sites: Sequence[Site], minutes: float, out: Path
) -> list[dict[str, Any]]:
    """One misfortune and one line a minute."""
    samples: list[dict[str, Any]] = []
    began = time.monotonic()
    with out.open("w") as file:
        while (time.monotonic() - began) / 60 < minutes and process.poll() is None:
            misfortune = MISFORTUNES[len(samples) % len(MISFORTUNES)]
            await sites[len(samples) % len(sites)].suffer(misfortune)
            await asyncio.sleep(max(0.0, (len(samples) + 1) * min(60, minutes * 30) - (time.monotonic() - began)))
            sample = {"minute": round((time.monotonic() - began) / 60, 2), "misfortune": misfortune}
            sample |= {"faults": len(samples) + 1, "searches": sum(site.proxy.requests for site in sites)}
            sample |= look(run_dir, process.pid)
            samples.append(sample)
            file.write(json.dumps(sample) + "\n")
            file.flush()
            print(json.dumps(sample), flush=True)
    if process.poll() is not None:
        raise SystemExit(f"the run ended with {process.returncode}:\n{runs.output(run_dir)[-3000:]}")
    return samples


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    measure = partial(
        figures,
        minutes=float(given.get("minutes", 60)),
        latency=float(given.get("latency", 0.3)),
        out=given.get("out", "runs/soak.jsonl"),
    )
    main(measure, [argument for argument in sys.argv[1:] if "=" not in argument])
