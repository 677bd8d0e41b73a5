"""One way of training, measured in processes of its own: time, FLOPs and memory of an update, a line of JSON.

A process a rank, each seeing one card: a variant starts from clean memory, and one that hangs takes nobody with it.
Needs torch, transformers and this repository alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.harness import ROOT


@dataclass(frozen=True)
class Variant:
    """How to train."""

    name: str
    cap: int
    """Tokens of a micro-batch."""
    sequences: int
    """Of each rank, log-normal lengths."""
    compute_dtype: str = "bfloat16"
    recompute: bool | Literal["auto"] = "auto"
    """Layers, for the backward pass; as few as the card needs, as in the presets."""
    offload: str = "none"
    logits_mib: int = 4096
    """As in the presets."""
    steps: int = 4
    """Two warm up."""


def run(variant: Variant, model: Path, ranks: int = 1, *, timeout_s: float) -> dict[str, Any] | None:
    """What rank 0 found; None, with a line that says why, if a rank failed or the time ran out."""
    from verl.cluster.processes import free_port

    code = "import sys; from bench.gpu.update import child; child(*sys.argv[1:])"
    command = [sys.executable, "-c", code, json.dumps(asdict(variant)), str(model)]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    except subprocess.TimeoutExpired:
        print(f"{variant.name}: not done after {timeout_s:.0f} s", flush=True)
        return None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        print(f"{variant.name}: failed, see above", flush=True)
        return None
    found: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    for kernel, milliseconds, times in found["slowest"]:
        print(f"{milliseconds:9.2f} ms {times:6d} x  {kernel[:100]}")
    return found


def child(variant: str, model: str) -> None:
    """The process of a rank; rank 0's last line is what it found."""
    import torch.distributed as dist

    from verl.learner.__main__ import join_group

    device = join_group()
    found = measure(Variant(**json.loads(variant)), Path(model), device)
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def measure(variant: Variant, model: Path, device: str) -> dict[str, Any]:
    """Medians of the steps after the first two; memory (GiB) by part where there is a card."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from bench.gpu.card import GIB
    from bench.learner.sizes import lognormal_lengths, sample_of
    from verl.algorithms.config import LossConfig
    from verl.learner.__main__ import timed_update
    from verl.learner.config import LearnerConfig, OptimizerConfig
    from verl.learner.learner import Learner
    from verl.learner.phase import Phase

    on_card = device == "cuda"

    def held() -> float:
        return torch.cuda.memory_allocated() / GIB if on_card else 0.0

    config = LearnerConfig(
        max_tokens_per_microbatch=variant.cap,
        compute_dtype=variant.compute_dtype,  # type: ignore[arg-type]
        gradient_checkpointing=variant.recompute,
        offload=variant.offload,  # type: ignore[arg-type]
        max_logits_mib=variant.logits_mib,
    )
    learner = Learner(model, config, seed=0)
    phase = Phase(OptimizerConfig(), LossConfig(), variant.steps)
    learner.begin_phase(phase)
    loaded = held()
    rng, ranks = np.random.default_rng(0), dist.get_world_size()
    samples = [sample_of(length, rng) for length in lognormal_lengths(variant.sequences * ranks, seed=0)]
    updates = [timed_update(learner, samples, 1.0) for _ in range(variant.steps)]
    found: dict[str, Any] = {
        key: statistics.median(update[key] for update in updates[2:])
        for key in ("seconds", "tokens_per_second", "tflops_per_rank")
    }
    launched, slowest = profiled(learner, samples) if on_card else (0, [])
    found |= {"loss": updates[-1]["loss"], "launches": launched, "slowest": slowest}
    predicted = predicted_gib(learner, phase, model, ranks) if on_card else (0.0, 0.0)
    return found | {
        "loaded_gib": loaded,
        "held_gib": held(),
        "peak_gib": updates[-1].get("peak_memory_gib", 0.0),
        "predicted_gib": predicted[0],
        "predicted_peak_gib": predicted[1],
    }


def profiled(learner: Any, samples: Any, shown: int = 20) -> tuple[int, list[tuple[str, float, int]]]:
    """How many kernels one update launches, and those that take longest: name, milliseconds in all, times."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        learner.update(samples, 1.0)
    events = profiler.key_averages()
    names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    slowest = [(event.key, event.self_device_time_total / 1e3, event.count) for event in kernels[:shown]]
    return sum(event.count for event in events if event.key in names), slowest


def predicted_gib(learner: Any, phase: Any, model: Path, ranks: int) -> tuple[float, float]:
    """What the plan says that a rank holds on its card between steps, and takes there at most."""
    from bench.gpu.card import GIB
    from verl.learner.holdings import holdings
    from verl.learner.memory import counts_of, working_bytes
    from verl.model_shape import read_shape

    config, shape = learner.config, read_shape(str(model))
    parts = holdings(config, phase, counts_of(config, shape), ranks).values()
    held = sum(part.held for part in parts if not part.on_host)
    working = sum(working_bytes(config, shape, on_gpu=True).values())
    most = held + max(sum(part.computing for part in parts) + working, sum(part.stepping for part in parts))
    return held / GIB, most / GIB
